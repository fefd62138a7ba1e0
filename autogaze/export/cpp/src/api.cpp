// The C API: checks arguments, and turns every failure into a status and words.
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "autogaze_trt.h"
#include "failure.hpp"
#include "handles.hpp"

using autogaze::detail::Failure;
using autogaze::detail::FrameStream;
using autogaze::detail::Model;

namespace {

thread_local std::string last_error;

// Words that cannot be kept for want of memory are given up.
void say(const char* words) noexcept {
  try {
    last_error = words;
  } catch (...) {
    last_error.clear();
  }
}

template <typename Work>
autogaze_status guarded(Work&& work) noexcept {
  try {
    std::forward<Work>(work)();
    return AUTOGAZE_OK;
  } catch (const Failure& failure) {
    say(failure.what());
    return failure.status;
  } catch (const std::exception& error) {
    say(error.what());
  } catch (...) {
    say("unknown failure");
  }
  return AUTOGAZE_RUNTIME;
}

void need(const void* pointer, const char* name) {
  if (pointer == nullptr) throw Failure(AUTOGAZE_BAD_ARGUMENT, std::string(name) + " must not be null");
}

// A stream while one call uses it.
class Use {
 public:
  explicit Use(autogaze_stream* stream) {
    need(stream, "stream");
    lock_ = std::unique_lock<std::mutex>(stream->in_use, std::try_to_lock);
    if (!lock_)
      throw Failure(AUTOGAZE_BAD_ARGUMENT, "another thread's call is in this stream; give every thread its own");
  }

 private:
  std::unique_lock<std::mutex> lock_;
};

}  // namespace

const char* autogaze_version(void) { return AUTOGAZE_VERSION; }

const char* autogaze_last_error(void) { return last_error.c_str(); }

autogaze_status autogaze_engine_load(const char* path, int32_t device, autogaze_engine** engine) {
  autogaze_options options{};
  options.size = sizeof options;
  options.device = device;
  return autogaze_engine_open(path, &options, engine);
}

autogaze_status autogaze_engine_open(const char* path, const autogaze_options* options, autogaze_engine** engine) {
  return guarded([&] {
    need(path, "path");
    need(options, "options");
    need(engine, "engine");
    *engine = nullptr;
    if (options->size < sizeof(autogaze_options)) {
      throw Failure(AUTOGAZE_BAD_ARGUMENT, "options.size must be sizeof(autogaze_options)");
    }
    if (options->device < 0 || options->threads < 0) {
      throw Failure(AUTOGAZE_BAD_ARGUMENT, "options.device and options.threads must not be negative");
    }
    autogaze::detail::Options asked;
    asked.device = options->device;
    asked.threads = options->threads;
    if (options->runtime_cache != nullptr) asked.runtime_cache = options->runtime_cache;
    if (options->log != nullptr) {
      asked.log = [log = options->log, user = options->log_user](int32_t severity, const char* message) {
        log(user, severity, message);
      };
    }
    auto runtime = autogaze::detail::open_runtime(path, asked);
    auto loaded = std::make_unique<autogaze_engine>();
    loaded->model = std::make_shared<Model>(std::move(runtime), path);
    *engine = loaded.release();
  });
}

void autogaze_engine_free(autogaze_engine* engine) { delete engine; }

autogaze_status autogaze_engine_info(const autogaze_engine* engine, autogaze_info* info) {
  return guarded([&] {
    need(engine, "engine");
    need(info, "info");
    const auto& metadata = engine->model->metadata;
    const auto& grid = engine->model->grid;
    *info = {grid.patches_per_frame(),
             metadata.budget,
             grid.scales(),
             grid.tile_px(),
             metadata.input_height,
             metadata.input_width,
             metadata.uint8 ? 1 : 0,
             metadata.smallest_batch,
             metadata.largest_batch,
             metadata.gazing_ratio,
             metadata.task_loss_requirement};
  });
}

const char* autogaze_engine_property(const autogaze_engine* engine, const char* key) {
  if (engine == nullptr || key == nullptr) return nullptr;
  const auto& properties = engine->model->runtime->properties;
  const auto found = properties.find(key);
  return found == properties.end() ? nullptr : found->second.c_str();
}

autogaze_status autogaze_engine_box(const autogaze_engine* engine, int64_t id, float box[4]) {
  return guarded([&] {
    need(engine, "engine");
    need(box, "box");
    const auto& grid = engine->model->grid;
    if (!grid.holds(id)) {
      throw Failure(AUTOGAZE_BAD_ARGUMENT, "id must be 0 to " + std::to_string(grid.patches_per_frame() - 1));
    }
    const auto found = grid.box(id);
    for (int side = 0; side < 4; ++side) box[side] = found[side];
  });
}

autogaze_status autogaze_stream_create(autogaze_engine* engine, int32_t batch, void* cuda_stream,
                                       autogaze_stream** stream) {
  return guarded([&] {
    need(engine, "engine");
    need(stream, "stream");
    *stream = nullptr;
    auto created = std::make_unique<autogaze_stream>();
    created->model = engine->model;
    created->stream = std::make_unique<FrameStream>(*engine->model, batch, cuda_stream);
    *stream = created.release();
  });
}

void autogaze_stream_free(autogaze_stream* stream) { delete stream; }

autogaze_status autogaze_stream_reset(autogaze_stream* stream) {
  return guarded([&] {
    const Use use(stream);
    stream->stream->reset();
  });
}

autogaze_status autogaze_stream_reset_sample(autogaze_stream* stream, int32_t sample) {
  return guarded([&] {
    const Use use(stream);
    stream->stream->reset(sample);
  });
}

autogaze_status autogaze_stream_gaze_in_place(autogaze_stream* stream, autogaze_batch_gaze* gaze) {
  return guarded([&] {
    const Use use(stream);
    need(gaze, "gaze");
    *gaze = stream->stream->gaze_in_place();
  });
}

autogaze_status autogaze_stream_push(autogaze_stream* stream, const void* frames, int32_t place,
                                     const autogaze_request* requests) {
  return guarded([&] {
    const Use use(stream);
    need(frames, "frames");
    if (place != AUTOGAZE_HOST && place != AUTOGAZE_DEVICE) {
      throw Failure(AUTOGAZE_BAD_ARGUMENT, "place must be AUTOGAZE_HOST or AUTOGAZE_DEVICE");
    }
    stream->stream->push(frames, place == AUTOGAZE_DEVICE, requests);
  });
}

autogaze_status autogaze_stream_gaze(autogaze_stream* stream, int32_t sample, autogaze_gaze* gaze) {
  return guarded([&] {
    const Use use(stream);
    need(gaze, "gaze");
    *gaze = stream->stream->gaze(sample);
  });
}
