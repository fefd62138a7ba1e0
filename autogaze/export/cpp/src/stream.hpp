// A stream of frames: its buffers, its memory from frame to frame, and its last gaze.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "autogaze_trt.h"
#include "grid.hpp"
#include "model.hpp"
#include "runtime.hpp"

namespace autogaze::detail {

// Device memory that frees itself.
class Buffer {
 public:
  Buffer(Runtime& runtime, std::size_t bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* get() const { return memory_; }
  std::size_t bytes() const { return bytes_; }

 private:
  Runtime& runtime_;
  std::size_t bytes_;
  void* memory_;
};

class FrameStream {
 public:
  FrameStream(Model& model, int batch, void* cuda_stream);

  int batch() const { return batch_; }
  void reset();
  void reset(int sample);
  void push(const void* frames, bool on_device, const autogaze_request* requests);
  autogaze_gaze gaze(int sample);
  autogaze_batch_gaze gaze_in_place() const;

 private:
  struct Result {
    std::vector<int64_t> ids;
    std::vector<float> boxes;
    std::vector<float> task_loss;
  };

  void check_sample(int sample) const;
  void fetch();
  Buffer& input(const std::string& name) { return *inputs_.at(name); }

  Model& model_;
  int batch_;
  void* cuda_stream_;
  std::unique_ptr<Runtime::Session> session_;
  std::map<std::string, std::unique_ptr<Buffer>> inputs_;     // frame and what is asked
  std::map<std::string, std::unique_ptr<Buffer>> memory_[2];  // read one, write the other
  std::map<std::string, std::unique_ptr<Buffer>> results_;
  int turn_ = 0;
  bool pushed_ = false;
  bool fetched_ = false;
  std::vector<Result> gazes_;
};

// Chosen ids of one sample, with boxes and losses. Throws Failure(AUTOGAZE_RUNTIME) on an id outside the grid.
void decode(const Grid& grid, const int64_t* ids, const uint8_t* chosen, const float* losses, int slots,
            std::vector<int64_t>& out_ids, std::vector<float>& out_boxes, std::vector<float>& out_losses);

}  // namespace autogaze::detail
