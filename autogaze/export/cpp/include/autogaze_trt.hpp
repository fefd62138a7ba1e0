// C++ face of autogaze_trt.h: owners that free themselves, and exceptions instead of status codes.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "autogaze_trt.h"

namespace autogaze {

// A failed call, with its status and the library's words.
class Error : public std::runtime_error {
 public:
  explicit Error(autogaze_status status) : std::runtime_error(autogaze_last_error()), status(status) {}
  const autogaze_status status;
};

inline void check(autogaze_status status) {
  if (status != AUTOGAZE_OK) throw Error(status);
}

// An exported file, ready to run.
class Engine {
 public:
  explicit Engine(const std::string& path, int device = 0) {
    autogaze_engine* raw = nullptr;
    check(autogaze_engine_load(path.c_str(), device, &raw));
    engine_.reset(raw);
  }
  Engine(const std::string& path, autogaze_options options) {
    options.size = sizeof options;
    autogaze_engine* raw = nullptr;
    check(autogaze_engine_open(path.c_str(), &options, &raw));
    engine_.reset(raw);
  }
  autogaze_info info() const {
    autogaze_info info{};
    check(autogaze_engine_info(engine_.get(), &info));
    return info;
  }
  std::string property(const std::string& key) const {
    const char* value = autogaze_engine_property(engine_.get(), key.c_str());
    return value == nullptr ? std::string() : std::string(value);
  }
  autogaze_engine* get() const { return engine_.get(); }

 private:
  struct Free {
    void operator()(autogaze_engine* engine) const { autogaze_engine_free(engine); }
  };
  std::unique_ptr<autogaze_engine, Free> engine_;
};

// Streams side by side; they keep their engine.
class Stream {
 public:
  explicit Stream(const Engine& engine, int batch = 1, void* cuda_stream = nullptr) {
    autogaze_stream* raw = nullptr;
    check(autogaze_stream_create(engine.get(), batch, cuda_stream, &raw));
    stream_.reset(raw);
  }
  void push(const void* frames, autogaze_place place = AUTOGAZE_HOST, const autogaze_request* requests = nullptr) {
    check(autogaze_stream_push(stream_.get(), frames, place, requests));
  }
  autogaze_gaze gaze(int sample = 0) {
    autogaze_gaze gaze{};
    check(autogaze_stream_gaze(stream_.get(), sample, &gaze));
    return gaze;
  }
  autogaze_batch_gaze gaze_in_place() {
    autogaze_batch_gaze gaze{};
    check(autogaze_stream_gaze_in_place(stream_.get(), &gaze));
    return gaze;
  }
  void reset() { check(autogaze_stream_reset(stream_.get())); }
  void reset(int sample) { check(autogaze_stream_reset_sample(stream_.get(), sample)); }

 private:
  struct Free {
    void operator()(autogaze_stream* stream) const { autogaze_stream_free(stream); }
  };
  std::unique_ptr<autogaze_stream, Free> stream_;
};

}  // namespace autogaze
