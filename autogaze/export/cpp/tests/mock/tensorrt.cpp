// The mock's engine: every id of a frame is the number of frames that its stream has seen, plus its slot; as many as
// the first pixel says are chosen. It goes through the scratch memory, which another call must not have at the same
// time.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "NvInfer.h"
#include "metadata.hpp"
#include "mock.hpp"

using autogaze::detail::TensorSpec;
using autogaze::detail::Type;

struct MockEngineState {
  int device;
  std::vector<TensorSpec> inputs, outputs;

  const TensorSpec& at(int index) const {
    const int first = static_cast<int>(inputs.size());
    return index < first ? inputs[index] : outputs[index - first];
  }
  const TensorSpec* find(const std::string& name) const {
    for (const auto* specs : {&inputs, &outputs}) {
      for (const auto& spec : *specs) {
        if (spec.name == name) return &spec;
      }
    }
    return nullptr;
  }
};

namespace {
std::atomic<int> contexts{0};
std::atomic<std::size_t> scratch{0};
std::atomic<bool> host_code{false};
int current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}
}  // namespace

namespace mock {
int living_contexts() { return contexts; }
std::size_t largest_scratch() { return scratch; }
bool host_code_was_allowed() { return host_code; }
}  // namespace mock

int32_t getInferLibVersion() noexcept { return 101300; }

namespace nvinfer1 {

ICudaEngine* IRuntime::deserializeCudaEngine(const void* plan, std::size_t bytes) {
  std::string text(static_cast<const char*>(plan), bytes);
  const std::string needs = "needs host code;";
  if (text.compare(0, needs.size(), needs) == 0) {
    if (!host_code_) {
      logger_.log(ILogger::Severity::kERROR, "the plan has host code, which is not allowed");
      return nullptr;
    }
    host_code = true;
    text = text.substr(needs.size());
  }
  const auto bar = text.find('|');
  if (bar == std::string::npos) {
    logger_.log(ILogger::Severity::kERROR, "the plan is of another GPU");
    return nullptr;
  }
  logger_.log(ILogger::Severity::kINFO, "the plan is read");
  auto state = std::make_shared<MockEngineState>();
  state->device = current_device();
  state->inputs = autogaze::detail::parse_specs(text.substr(0, bar), "plan");
  state->outputs = autogaze::detail::parse_specs(text.substr(bar + 1), "plan");
  return new ICudaEngine(state);
}

int32_t ICudaEngine::getNbIOTensors() const {
  return static_cast<int32_t>(state_->inputs.size() + state_->outputs.size());
}
const char* ICudaEngine::getIOTensorName(int32_t index) const { return state_->at(index).name.c_str(); }
DataType ICudaEngine::getTensorDataType(const char* name) const {
  static const DataType types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT64,
                                   DataType::kINT32, DataType::kBOOL, DataType::kUINT8};
  return types[static_cast<int>(state_->find(name)->type)];
}
Dims ICudaEngine::getTensorShape(const char* name) const {
  const auto& shape = state_->find(name)->shape;
  Dims dims{static_cast<int32_t>(shape.size()) + 1, {-1}};
  std::copy(shape.begin(), shape.end(), dims.d + 1);
  return dims;
}
TensorIOMode ICudaEngine::getTensorIOMode(const char* name) const {
  for (const auto& spec : state_->inputs) {
    if (spec.name == name) return TensorIOMode::kINPUT;
  }
  return TensorIOMode::kOUTPUT;
}
IExecutionContext* ICudaEngine::createExecutionContext(ExecutionContextAllocationStrategy strategy) {
  const bool fits = strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED && state_->device == current_device();
  return fits ? new IExecutionContext(state_) : nullptr;
}

struct IExecutionContext::Call {
  std::shared_ptr<MockEngineState> engine;
  std::map<std::string, char*> at;
  int batch = 0;
  char* memory = nullptr;
  std::size_t bytes = 0;
};

IExecutionContext::IExecutionContext(std::shared_ptr<MockEngineState> engine) : call_(std::make_unique<Call>()) {
  call_->engine = std::move(engine);
  ++contexts;
}
IExecutionContext::~IExecutionContext() { --contexts; }

bool IExecutionContext::setInputShape(const char* name, const Dims& shape) {
  const auto* spec = call_->engine->find(name);
  if (spec == nullptr || shape.nbDims != static_cast<int32_t>(spec->shape.size()) + 1) return false;
  if (!std::equal(spec->shape.begin(), spec->shape.end(), shape.d + 1)) return false;
  call_->batch = static_cast<int>(shape.d[0]);
  return true;
}
bool IExecutionContext::setTensorAddress(const char* name, void* address) {
  const auto* spec = call_->engine->find(name);
  if (spec == nullptr || !mock::here(address, spec->bytes(call_->batch))) return false;
  call_->at[name] = static_cast<char*>(address);
  return true;
}
std::size_t IExecutionContext::updateDeviceMemorySizeForShapes() {
  return 1000 * static_cast<std::size_t>(call_->batch);
}
void IExecutionContext::setDeviceMemoryV2(void* memory, int64_t bytes) {
  call_->memory = static_cast<char*>(memory);
  call_->bytes = static_cast<std::size_t>(bytes);
  scratch = std::max(scratch.load(), call_->bytes);
}

bool IExecutionContext::enqueueV3(cudaStream_t stream) {
  const Call call = *call_;  // addresses as they are now
  if (call.engine->device != current_device() || call.bytes < updateDeviceMemorySizeForShapes()) return false;
  if (!mock::here(call.memory, call.bytes)) return false;
  const auto begin = [call] {  // a first kernel leaves in the scratch what a second one reads
    std::memcpy(call.memory, call.at.at("positions"), sizeof(int32_t) * call.batch);
  };
  const auto end = [call] {
    const auto slots = static_cast<int>(call.engine->find("ids")->shape[0]);
    const auto frame = call.engine->find("frame")->bytes(1);
    for (const auto& spec : call.engine->outputs) std::memset(call.at.at(spec.name), 0, spec.bytes(call.batch));
    for (int b = 0; b < call.batch; ++b) {
      int32_t seen, budget;
      std::memcpy(&seen, call.memory + sizeof seen * b, sizeof seen);
      std::memcpy(&budget, call.at.at("budget") + sizeof budget * b, sizeof budget);
      const int chosen = std::min<int>(static_cast<unsigned char>(call.at.at("frame")[frame * b]), budget);
      for (int slot = 0; slot < slots; ++slot) {
        const int64_t id = seen + slot;
        std::memcpy(call.at.at("ids") + sizeof id * (slots * b + slot), &id, sizeof id);
        call.at.at("chosen")[slots * b + slot] = slot < chosen;
      }
      const int32_t count = chosen, next = seen + 1;
      std::memcpy(call.at.at("count") + sizeof count * b, &count, sizeof count);
      std::memcpy(call.at.at("next_positions") + sizeof next * b, &next, sizeof next);
    }
    std::memset(call.memory, 0x7F, call.bytes);
  };
  return mock::enqueue(stream, begin) == cudaSuccess && mock::enqueue(stream, end) == cudaSuccess;
}

}  // namespace nvinfer1
