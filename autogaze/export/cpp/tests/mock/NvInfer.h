// A TensorRT for tests: the calls that the backend makes, and an engine that is the test's own model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda_runtime_api.h"

#define NV_TENSORRT_MAJOR 10

struct MockEngineState;

namespace nvinfer1 {

enum class DataType { kFLOAT, kHALF, kINT8, kINT32, kBOOL, kUINT8, kFP8, kBF16, kINT64 };
enum class TensorIOMode { kNONE, kINPUT, kOUTPUT };
enum class ExecutionContextAllocationStrategy { kSTATIC, kON_PROFILE_CHANGE, kUSER_MANAGED };

struct Dims {
  int32_t nbDims;
  int64_t d[8];
};

class ILogger {
 public:
  enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

class IExecutionContext {
 public:
  explicit IExecutionContext(std::shared_ptr<MockEngineState> engine);
  ~IExecutionContext();
  bool setInputShape(const char* name, const Dims& shape);
  bool setTensorAddress(const char* name, void* address);
  std::size_t updateDeviceMemorySizeForShapes();
  void setDeviceMemoryV2(void* memory, int64_t bytes);
  bool enqueueV3(cudaStream_t stream);

 private:
  struct Call;
  std::unique_ptr<Call> call_;
};

class ICudaEngine {
 public:
  explicit ICudaEngine(std::shared_ptr<MockEngineState> state) : state_(std::move(state)) {}
  int32_t getNbIOTensors() const;
  const char* getIOTensorName(int32_t index) const;
  DataType getTensorDataType(const char* name) const;
  Dims getTensorShape(const char* name) const;
  TensorIOMode getTensorIOMode(const char* name) const;
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy);

 private:
  std::shared_ptr<MockEngineState> state_;
};

class IRuntime {
 public:
  explicit IRuntime(ILogger& logger) : logger_(logger) {}
  void setEngineHostCodeAllowed(bool allowed) { host_code_ = allowed; }
  // The plan is "needs host code;" or nothing, then the lists of inputs and outputs as in the file's metadata, by a
  // bar.
  ICudaEngine* deserializeCudaEngine(const void* plan, std::size_t bytes);

 private:
  ILogger& logger_;
  bool host_code_ = false;
};

inline IRuntime* createInferRuntime(ILogger& logger) { return new IRuntime(logger); }

}  // namespace nvinfer1

int32_t getInferLibVersion() noexcept;
