// ONNX Runtime on a CPU: for machines without TensorRT. Memory is host memory, streams are ignored.
#include <onnxruntime_cxx_api.h>

#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>

#include "failure.hpp"
#include "runtime.hpp"

namespace autogaze::detail {
namespace {

Type type_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return Type::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return Type::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return Type::kBFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return Type::kInt64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return Type::kInt32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return Type::kBool;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return Type::kUint8;
    default:
      throw Failure(AUTOGAZE_BAD_FILE, "the file has a tensor of an element type that no export has");
  }
}

ONNXTensorElementDataType type_of(Type type) {
  switch (type) {
    case Type::kFloat32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case Type::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case Type::kBFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case Type::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case Type::kInt32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case Type::kBool:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    case Type::kUint8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

// The calling thread works along: let it take numbers below 1e-38 for zero, as the session's own threads do. The
// softmax of a token that may not be seen is such a number on its way to 0, and CPUs are slow at them.
class Flushed {
 public:
#if defined(__SSE__) || defined(_M_X64)
  Flushed() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // flush to zero, denormals are zero
  ~Flushed() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  Flushed() {}
#endif
};

Ort::Env& environment() {
  static Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "autogaze");
  return env;
}

class OnnxSession : public Runtime::Session {
 public:
  OnnxSession(Ort::Session& session, const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs)
      : session_(session), inputs_(inputs), outputs_(outputs) {}

  void run(const std::map<std::string, void*>& tensors, int batch, void*) override {
    const Flushed flushed;
    try {
      Ort::IoBinding binding(session_);
      for (const auto& spec : inputs_) binding.BindInput(spec.name.c_str(), value(spec, tensors, batch));
      for (const auto& spec : outputs_) binding.BindOutput(spec.name.c_str(), value(spec, tensors, batch));
      session_.Run(Ort::RunOptions{nullptr}, binding);
    } catch (const Ort::Exception& error) {
      throw Failure(AUTOGAZE_RUNTIME, std::string("ONNX Runtime could not run the file: ") + error.what());
    }
  }

 private:
  Ort::Value value(const TensorSpec& spec, const std::map<std::string, void*>& tensors, int batch) {
    std::vector<int64_t> shape = {batch};
    shape.insert(shape.end(), spec.shape.begin(), spec.shape.end());
    return Ort::Value::CreateTensor(host_, tensors.at(spec.name), spec.bytes(batch), shape.data(), shape.size(),
                                    type_of(spec.type));
  }

  Ort::Session& session_;
  const std::vector<TensorSpec>& inputs_;
  const std::vector<TensorSpec>& outputs_;
  Ort::MemoryInfo host_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
};

class OnnxRuntime : public Runtime {
 public:
  OnnxRuntime(const std::string& path, const Options& options) : log_(options.log) {
    if (!std::ifstream(path)) throw Failure(AUTOGAZE_BAD_FILE, path + ": no such file");
    try {
      open(path, options);
    } catch (const Ort::Exception& error) {
      throw Failure(AUTOGAZE_BAD_FILE,
                    path + ": ONNX Runtime cannot read it (cut short, or not ONNX): " + error.what());
    }
  }

  bool on_device() const override { return false; }
  void* allocate(std::size_t bytes) override {
    void* memory = std::malloc(bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  void release(void* memory) noexcept override { std::free(memory); }
  void fill_zero(void* memory, std::size_t bytes, void*) override { std::memset(memory, 0, bytes); }
  void copy_in(void* memory, const void* from, std::size_t bytes, bool on_device, void*) override {
    if (on_device) throw Failure(AUTOGAZE_BAD_ARGUMENT, "this file runs on the CPU: frames must lie in host memory");
    std::memcpy(memory, from, bytes);
  }
  void copy_out(void* to, const void* memory, std::size_t bytes, void*) override { std::memcpy(to, memory, bytes); }
  void synchronize(void*) override {}
  std::unique_ptr<Session> session() override { return std::make_unique<OnnxSession>(session_, inputs, outputs); }

 private:
  static void ORT_API_CALL listen(void* log, OrtLoggingLevel level, const char*, const char*, const char*,
                                  const char* message) {
    (*static_cast<LogCallback*>(log))(level >= ORT_LOGGING_LEVEL_ERROR     ? AUTOGAZE_LOG_ERROR
                                      : level == ORT_LOGGING_LEVEL_WARNING ? AUTOGAZE_LOG_WARNING
                                                                           : AUTOGAZE_LOG_INFO,
                                      message);
  }

  void open(const std::string& path, const Options& asked) {
    Ort::SessionOptions options;
    options.AddConfigEntry("session.set_denormal_as_zero", "1");
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");  // waiting threads burn what others want
    if (asked.threads > 0) options.SetIntraOpNumThreads(asked.threads);
    if (log_) {
      options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_INFO);
      Ort::ThrowOnError(Ort::GetApi().SetUserLoggingFunction(options, &OnnxRuntime::listen, &log_));
    }
#ifdef _WIN32
    session_ = Ort::Session(environment(), std::wstring(path.begin(), path.end()).c_str(), options);
#else
    session_ = Ort::Session(environment(), path.c_str(), options);
#endif
    Ort::AllocatorWithDefaultOptions allocator;
    const Ort::ModelMetadata metadata = session_.GetModelMetadata();
    for (const auto& key : metadata.GetCustomMetadataMapKeysAllocated(allocator)) {
      properties[key.get()] = metadata.LookupCustomMetadataMapAllocated(key.get(), allocator).get();
    }
    for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
      inputs.push_back(spec(session_.GetInputNameAllocated(i, allocator).get(), session_.GetInputTypeInfo(i)));
    }
    for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
      outputs.push_back(spec(session_.GetOutputNameAllocated(i, allocator).get(), session_.GetOutputTypeInfo(i)));
    }
  }

  static TensorSpec spec(const char* name, const Ort::TypeInfo& info) {
    const auto tensor = info.GetTensorTypeAndShapeInfo();
    const std::vector<int64_t> shape = tensor.GetShape();
    TensorSpec spec;
    spec.name = name;
    spec.type = type_of(tensor.GetElementType());
    if (!shape.empty()) spec.shape.assign(shape.begin() + 1, shape.end());
    return spec;
  }

  LogCallback log_;  // before the session, which talks to it
  Ort::Session session_{nullptr};
};

}  // namespace

std::unique_ptr<Runtime> open_onnxruntime(const std::string& path, const Options& options) {
  return std::make_unique<OnnxRuntime>(path, options);
}

}  // namespace autogaze::detail
