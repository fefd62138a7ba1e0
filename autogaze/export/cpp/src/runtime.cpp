#include "runtime.hpp"

#include "failure.hpp"

namespace autogaze::detail {
namespace {

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

#ifndef AUTOGAZE_WITH_TENSORRT
std::unique_ptr<Runtime> open_tensorrt(const std::string& path, const Options&) {
  read_metadata(read_engine_file(path).properties, path);  // a broken file is named as such on any machine
  throw Failure(AUTOGAZE_NO_BACKEND, path + ": this library was built without TensorRT (cmake found no NvInfer.h)");
}
#endif

#ifndef AUTOGAZE_WITH_ONNXRUNTIME
std::unique_ptr<Runtime> open_onnxruntime(const std::string& path, const Options&) {
  throw Failure(AUTOGAZE_NO_BACKEND,
                path + ": this library was built without ONNX Runtime (cmake found no onnxruntime_cxx_api.h)");
}
#endif

std::unique_ptr<Runtime> open_runtime(const std::string& path, const Options& options) {
  if (ends_with(path, ".onnx")) return open_onnxruntime(path, options);
  for (const char* suffix : {".engine", ".plan", ".trt"}) {
    if (ends_with(path, suffix)) return open_tensorrt(path, options);
  }
  throw Failure(AUTOGAZE_BAD_FILE, path + ": expected .onnx, .engine, .plan or .trt");
}

}  // namespace autogaze::detail
