// What the opaque pointers of the C API hold. A stream keeps its engine: they may be freed in any order.
#pragma once

#include <memory>
#include <mutex>

#include "stream.hpp"

struct autogaze_engine {
  std::shared_ptr<autogaze::detail::Model> model;
};

struct autogaze_stream {
  std::shared_ptr<autogaze::detail::Model> model;  // before the stream, which is freed first
  std::unique_ptr<autogaze::detail::FrameStream> stream;
  std::mutex in_use;
};
