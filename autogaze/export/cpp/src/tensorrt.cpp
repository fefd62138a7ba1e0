// TensorRT 10, 11 and TensorRT for RTX: one API, different libraries.
#include <NvInfer.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <mutex>
#include <type_traits>
#include <utility>

#include "cuda.hpp"
#include "failure.hpp"
#include "runtime.hpp"

namespace autogaze::detail {
namespace {

// Keeps TensorRT's last error for our own words, and hands everything to the caller's log.
class Log : public nvinfer1::ILogger {
 public:
  explicit Log(LogCallback callback) : callback_(std::move(callback)) {}

  void log(Severity severity, const char* message) noexcept override {
    if (callback_ && severity <= Severity::kINFO) {
      callback_(severity <= Severity::kERROR     ? AUTOGAZE_LOG_ERROR
                : severity == Severity::kWARNING ? AUTOGAZE_LOG_WARNING
                                                 : AUTOGAZE_LOG_INFO,
                message);
    }
    if (severity > Severity::kERROR) return;
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      last_ = message;
    } catch (...) {  // no memory for the words
    }
  }
  std::string last() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_;
  }

 private:
  LogCallback callback_;
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

// Versions differ in how scratch memory is asked for and given: the newer call where there is one (int beats long).
template <typename Context, typename Engine>
auto scratch_bytes(Context& context, Engine&, int) -> decltype(context.updateDeviceMemorySizeForShapes()) {
  return context.updateDeviceMemorySizeForShapes();
}
template <typename Context, typename Engine>
std::size_t scratch_bytes(Context&, Engine& engine, long) {
  return engine.getDeviceMemorySize();
}
template <typename Context>
auto give_scratch(Context& context, void* memory, std::size_t bytes, int)
    -> decltype(context.setDeviceMemoryV2(memory, static_cast<int64_t>(bytes))) {
  context.setDeviceMemoryV2(memory, static_cast<int64_t>(bytes));
}
template <typename Context>
void give_scratch(Context& context, void* memory, std::size_t, long) {
  context.setDeviceMemory(memory);
}

#ifdef TRT_MAJOR_RTX
// TensorRT for RTX compiles kernels where it runs; the file keeps them for the next start.
class KernelCache {
 public:
  KernelCache(nvinfer1::ICudaEngine& engine, std::string path, Log& log)
      : path_(std::move(path)), config_(engine.createRuntimeConfig()) {
    if (config_) cache_.reset(config_->createRuntimeCache());
    if (!cache_) throw Failure(AUTOGAZE_RUNTIME, "TensorRT made no runtime cache: " + log.last());
    std::ifstream stream(path_, std::ios::binary);
    const std::vector<char> old{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    if (!old.empty()) cache_->deserialize(old.data(), old.size());  // one of another GPU or version is left out
    config_->setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
    if (!config_->setRuntimeCache(*cache_))
      throw Failure(AUTOGAZE_RUNTIME, "TensorRT refuses its cache: " + log.last());
  }
  ~KernelCache() {
    const std::unique_ptr<nvinfer1::IHostMemory> kernels(cache_->serialize());
    if (!kernels) return;
    const std::string fresh = path_ + ".part";  // whole or not at all
    std::ofstream(fresh, std::ios::binary)
        .write(static_cast<const char*>(kernels->data()), static_cast<std::streamsize>(kernels->size()));
    std::rename(fresh.c_str(), path_.c_str());
  }
  nvinfer1::IExecutionContext* context(nvinfer1::ICudaEngine& engine) {
    return engine.createExecutionContext(config_.get());
  }

 private:
  std::string path_;
  std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
  std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
};
#else
class KernelCache {
 public:
  KernelCache(nvinfer1::ICudaEngine&, const std::string&, Log&) {
    throw Failure(AUTOGAZE_BAD_ARGUMENT,
                  "a runtime cache is of TensorRT for RTX; this library was built with TensorRT");
  }
  nvinfer1::IExecutionContext* context(nvinfer1::ICudaEngine&) { return nullptr; }
};
#endif

nvinfer1::IExecutionContext* plain_context(nvinfer1::ICudaEngine& engine) {
#if NV_TENSORRT_MAJOR == 8 || NV_TENSORRT_MAJOR == 9
  return engine.createExecutionContextWithoutDeviceMemory();
#else
  return engine.createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
#endif
}

// What streams of one engine share.
struct Shared {
  Shared(int device, LogCallback callback) : device(device), log(std::move(callback)), scratch(device) {}
  ~Shared() {
    try {
      const OnDevice on(device);
      cache.reset();
      engine.reset();
      runtime.reset();
    } catch (const Failure&) {
    }
  }

  const int device;
  Log log;
  Scratch scratch;
  std::unique_ptr<nvinfer1::IRuntime> runtime;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::unique_ptr<KernelCache> cache;  // null: none was asked for
  std::mutex creation;                 // TensorRT makes execution contexts one at a time
};

class TensorRtSession : public Runtime::Session {
 public:
  TensorRtSession(Shared& shared, const std::vector<TensorSpec>& inputs) : shared_(shared), inputs_(inputs) {
    const OnDevice on(shared_.device);
    const std::lock_guard<std::mutex> lock(shared_.creation);
    context_.reset(shared_.cache ? shared_.cache->context(*shared_.engine) : plain_context(*shared_.engine));
    if (!context_) throw Failure(AUTOGAZE_RUNTIME, "TensorRT made no execution context: " + shared_.log.last());
  }
  ~TensorRtSession() override {
    try {
      const OnDevice on(shared_.device);
      context_.reset();
    } catch (const Failure&) {
    }
  }

  void run(const std::map<std::string, void*>& tensors, int batch, void* stream) override {
    const OnDevice on(shared_.device);
    for (const auto& spec : inputs_) {
      nvinfer1::Dims shape{};
      shape.nbDims = static_cast<int32_t>(spec.shape.size()) + 1;
      shape.d[0] = batch;
      for (std::size_t i = 0; i < spec.shape.size(); ++i) {
        shape.d[i + 1] = static_cast<std::remove_reference_t<decltype(shape.d[0])>>(spec.shape[i]);
      }
      if (!context_->setInputShape(spec.name.c_str(), shape)) {
        throw Failure(AUTOGAZE_RUNTIME, "TensorRT refuses the shape of " + spec.name + ": " + shared_.log.last());
      }
    }
    for (const auto& [name, address] : tensors) {
      if (!context_->setTensorAddress(name.c_str(), address)) {
        throw Failure(AUTOGAZE_RUNTIME, "TensorRT refuses the address of " + name + ": " + shared_.log.last());
      }
    }
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    const auto bytes = static_cast<std::size_t>(scratch_bytes(*context_, *shared_.engine, 0));
    shared_.scratch.use(bytes, cuda_stream, [&](void* memory, std::size_t size) {
      give_scratch(*context_, memory, size, 0);
      if (!context_->enqueueV3(cuda_stream)) {
        throw Failure(AUTOGAZE_RUNTIME, "TensorRT could not run the engine: " + shared_.log.last());
      }
    });
  }

 private:
  Shared& shared_;
  const std::vector<TensorSpec>& inputs_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

class TensorRtRuntime : public Runtime {
 public:
  TensorRtRuntime(const std::string& path, const Options& options) {
    EngineFile file = read_engine_file(path);
    read_metadata(file.properties, path);  // refuse what is not ours before TensorRT sees it
    properties = std::move(file.properties);
#ifndef TRT_MAJOR_RTX
    const int32_t here = getInferLibVersion() / (NV_TENSORRT_MAJOR < 10 ? 1000 : 10000);
    if (here != NV_TENSORRT_MAJOR) {
      throw Failure(AUTOGAZE_NO_BACKEND, path + ": this library was built with TensorRT " +
                                             std::to_string(NV_TENSORRT_MAJOR) + ", loaded is " + std::to_string(here));
    }
#endif
    shared_ = std::make_unique<Shared>(options.device, options.log);
    const OnDevice on(shared_->device);
    shared_->runtime.reset(nvinfer1::createInferRuntime(shared_->log));
    if (!shared_->runtime) throw Failure(AUTOGAZE_RUNTIME, "TensorRT did not start: " + shared_->log.last());
    // An engine for later versions brings host code along; without this it can't be opened.
    if (properties["engine.version_compatible"] == "1") shared_->runtime->setEngineHostCodeAllowed(true);
    shared_->engine.reset(shared_->runtime->deserializeCudaEngine(file.plan.data(), file.plan.size()));
    if (!shared_->engine) {
      throw Failure(AUTOGAZE_BAD_FILE, path + ": built for " + properties["engine.hardware"] + " with " +
                                           properties["engine.runtime"] + " " + properties["engine.version"] +
                                           ", cannot run here; export it again (" + shared_->log.last() + ")");
    }
    read_specs();
    if (inputs != parse_specs(properties["engine.inputs"], path) ||
        outputs != parse_specs(properties["engine.outputs"], path)) {
      throw Failure(AUTOGAZE_BAD_FILE, path + ": the plan's inputs and outputs are not those that the file names");
    }
    if (!options.runtime_cache.empty()) {
      shared_->cache = std::make_unique<KernelCache>(*shared_->engine, options.runtime_cache, shared_->log);
    }
  }

  bool on_device() const override { return true; }
  void* allocate(std::size_t bytes) override {
    const OnDevice on(shared_->device);
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocating GPU memory");
    return memory;
  }
  void release(void* memory) noexcept override {
    try {
      const OnDevice on(shared_->device);
      cudaFree(memory);
    } catch (const Failure&) {
    }
  }
  void fill_zero(void* memory, std::size_t bytes, void* stream) override {
    const OnDevice on(shared_->device);
    check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "clearing GPU memory");
  }
  void copy_in(void* memory, const void* from, std::size_t bytes, bool on_device, void* stream) override {
    const OnDevice on(shared_->device);
    const auto kind = on_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
    check(cudaMemcpyAsync(memory, from, bytes, kind, static_cast<cudaStream_t>(stream)), "copying to the GPU");
  }
  void copy_out(void* to, const void* memory, std::size_t bytes, void* stream) override {
    const OnDevice on(shared_->device);
    check(cudaMemcpyAsync(to, memory, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)),
          "copying from the GPU");
  }
  void synchronize(void* stream) override {
    const OnDevice on(shared_->device);
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the GPU");
  }
  std::unique_ptr<Session> session() override { return std::make_unique<TensorRtSession>(*shared_, inputs); }

 private:
  void read_specs() {
    const auto& engine = *shared_->engine;
    for (int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
      TensorSpec spec;
      spec.name = engine.getIOTensorName(i);
      spec.type = type_of(engine.getTensorDataType(spec.name.c_str()));
      const auto shape = engine.getTensorShape(spec.name.c_str());
      for (int32_t axis = 1; axis < shape.nbDims; ++axis) spec.shape.push_back(shape.d[axis]);
      const bool is_input = engine.getTensorIOMode(spec.name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
      (is_input ? inputs : outputs).push_back(std::move(spec));
    }
  }

  std::unique_ptr<Shared> shared_;
};

}  // namespace

std::unique_ptr<Runtime> open_tensorrt(const std::string& path, const Options& options) {
  return std::make_unique<TensorRtRuntime>(path, options);
}

}  // namespace autogaze::detail
