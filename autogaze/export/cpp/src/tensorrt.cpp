// TensorRT 10, 11 and TensorRT for RTX: one API, different libraries.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <mutex>
#include <utility>

#include "failure.hpp"
#include "runtime.hpp"

namespace autogaze::detail {
namespace {

void check(cudaError_t error, const char* doing) {
  if (error != cudaSuccess) {
    throw Failure(AUTOGAZE_RUNTIME, std::string(doing) + ": CUDA says " + cudaGetErrorString(error));
  }
}

// Keeps TensorRT's errors for our own words instead of printing them.
class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    last_ = message;
  }
  std::string last() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_;
  }

 private:
  std::mutex mutex_;
  std::string last_ = "no reason given";
};

Type type_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return Type::kFloat32;
    case nvinfer1::DataType::kHALF:
      return Type::kFloat16;
    case nvinfer1::DataType::kBF16:
      return Type::kBFloat16;
    case nvinfer1::DataType::kINT64:
      return Type::kInt64;
    case nvinfer1::DataType::kINT32:
      return Type::kInt32;
    case nvinfer1::DataType::kBOOL:
      return Type::kBool;
    case nvinfer1::DataType::kUINT8:
      return Type::kUint8;
    default:
      throw Failure(AUTOGAZE_BAD_FILE, "the engine has a tensor of an element type that no export has");
  }
}

class TensorRtSession : public Runtime::Session {
 public:
  TensorRtSession(nvinfer1::ICudaEngine& engine, const std::vector<TensorSpec>& inputs, int device, Log& log)
      : inputs_(inputs), device_(device), log_(log), context_(engine.createExecutionContext()) {
    if (!context_) throw Failure(AUTOGAZE_RUNTIME, "TensorRT made no execution context: " + log.last());
  }

  void run(const std::map<std::string, void*>& tensors, int batch, void* stream) override {
    check(cudaSetDevice(device_), "choosing the GPU");
    for (const auto& spec : inputs_) {
      nvinfer1::Dims shape{};
      shape.nbDims = static_cast<int32_t>(spec.shape.size()) + 1;
      shape.d[0] = batch;
      for (std::size_t i = 0; i < spec.shape.size(); ++i) {
        shape.d[i + 1] = static_cast<std::remove_reference_t<decltype(shape.d[0])>>(spec.shape[i]);
      }
      if (!context_->setInputShape(spec.name.c_str(), shape)) {
        throw Failure(AUTOGAZE_RUNTIME, "TensorRT refuses the shape of " + spec.name + ": " + log_.last());
      }
    }
    for (const auto& [name, address] : tensors) {
      if (!context_->setTensorAddress(name.c_str(), address)) {
        throw Failure(AUTOGAZE_RUNTIME, "TensorRT refuses the address of " + name + ": " + log_.last());
      }
    }
    if (!context_->enqueueV3(static_cast<cudaStream_t>(stream))) {
      throw Failure(AUTOGAZE_RUNTIME, "TensorRT could not run the engine: " + log_.last());
    }
  }

 private:
  const std::vector<TensorSpec>& inputs_;
  int device_;
  Log& log_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

class TensorRtRuntime : public Runtime {
 public:
  TensorRtRuntime(const std::string& path, int device) : device_(device) {
    EngineFile file = read_engine_file(path);
    read_metadata(file.properties, path);  // refuse what is not ours before TensorRT sees it
    properties = std::move(file.properties);
    check(cudaSetDevice(device), "choosing the GPU");
    runtime_.reset(nvinfer1::createInferRuntime(log_));
    if (!runtime_) throw Failure(AUTOGAZE_RUNTIME, "TensorRT did not start: " + log_.last());
    engine_.reset(runtime_->deserializeCudaEngine(file.plan.data(), file.plan.size()));
    if (!engine_) {
      throw Failure(AUTOGAZE_BAD_FILE, path + ": built for " + properties["engine.hardware"] + " with " +
                                           properties["engine.runtime"] + " " + properties["engine.version"] +
                                           ", cannot run here; export it again (" + log_.last() + ")");
    }
    read_specs();
    if (inputs != parse_specs(properties["engine.inputs"], path) ||
        outputs != parse_specs(properties["engine.outputs"], path)) {
      throw Failure(AUTOGAZE_BAD_FILE, path + ": the plan's inputs and outputs are not those that the file names");
    }
  }

  void* allocate(std::size_t bytes) override {
    check(cudaSetDevice(device_), "choosing the GPU");
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocating GPU memory");
    return memory;
  }
  void release(void* memory) noexcept override { cudaFree(memory); }
  void fill_zero(void* memory, std::size_t bytes, void* stream) override {
    check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "clearing GPU memory");
  }
  void copy_in(void* memory, const void* from, std::size_t bytes, bool on_device, void* stream) override {
    const auto kind = on_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
    check(cudaMemcpyAsync(memory, from, bytes, kind, static_cast<cudaStream_t>(stream)), "copying to the GPU");
  }
  void copy_out(void* to, const void* memory, std::size_t bytes, void* stream) override {
    check(cudaMemcpyAsync(to, memory, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)),
          "copying from the GPU");
  }
  void synchronize(void* stream) override {
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the GPU");
  }
  std::unique_ptr<Session> session() override {
    return std::make_unique<TensorRtSession>(*engine_, inputs, device_, log_);
  }

 private:
  void read_specs() {
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      TensorSpec spec;
      spec.name = engine_->getIOTensorName(i);
      spec.type = type_of(engine_->getTensorDataType(spec.name.c_str()));
      const auto shape = engine_->getTensorShape(spec.name.c_str());
      for (int32_t axis = 1; axis < shape.nbDims; ++axis) spec.shape.push_back(shape.d[axis]);
      const bool is_input = engine_->getTensorIOMode(spec.name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
      (is_input ? inputs : outputs).push_back(std::move(spec));
    }
  }

  int device_;
  Log log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
};

}  // namespace

std::unique_ptr<Runtime> open_tensorrt(const std::string& path, int device) {
  return std::make_unique<TensorRtRuntime>(path, device);
}

}  // namespace autogaze::detail
