#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "mock.hpp"

struct MockStream {
  int device;
  std::deque<std::function<void()>> work;
};

struct MockEvent {
  int device;
  cudaStream_t stream = nullptr;  // where it was recorded last
  std::shared_ptr<bool> reached;  // null: never recorded
};

namespace {

std::recursive_mutex everything;
thread_local int current = 0;
struct Block {
  int device;
  std::size_t bytes;
};
std::map<const char*, Block> blocks;
MockStream default_streams[mock::kDevices] = {{0, {}}, {1, {}}};

using Lock = std::lock_guard<std::recursive_mutex>;

cudaStream_t real(cudaStream_t stream) { return stream == nullptr ? &default_streams[current] : stream; }

void drain(cudaStream_t stream) {
  while (!stream->work.empty()) {
    const auto work = std::move(stream->work.front());
    stream->work.pop_front();
    work();
  }
}

}  // namespace

namespace mock {

cudaStream_t make_stream() { return new MockStream{current, {}}; }
void free_stream(cudaStream_t stream) { delete stream; }

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  const Lock lock(everything);
  stream = real(stream);
  if (stream->device != current) return cudaErrorInvalidValue;
  stream->work.push_back(std::move(work));
  return cudaSuccess;
}

bool here(const void* memory, std::size_t bytes) {
  const Lock lock(everything);
  const auto* start = static_cast<const char*>(memory);
  auto block = blocks.upper_bound(start);
  if (block == blocks.begin()) return false;
  --block;
  return block->second.device == current && start + bytes <= block->first + block->second.bytes;
}

std::size_t living_bytes() {
  const Lock lock(everything);
  std::size_t sum = 0;
  for (const auto& block : blocks) sum += block.second.bytes;
  return sum;
}

}  // namespace mock

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "error";
}

cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= mock::kDevices) return cudaErrorInvalidDevice;
  current = device;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  const Lock lock(everything);
  auto* block = new char[bytes];
  std::memset(block, 0x5A, bytes);  // nobody may rely on zeros
  blocks[block] = {current, bytes};
  *memory = block;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  const Lock lock(everything);
  if (memory == nullptr) return cudaSuccess;
  const auto block = blocks.find(static_cast<char*>(memory));
  if (block == blocks.end() || block->second.device != current) return cudaErrorInvalidValue;
  drain(&default_streams[current]);  // as cudaFree, which waits
  blocks.erase(block);
  delete[] static_cast<char*>(memory);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  if (!mock::here(memory, bytes)) return cudaErrorInvalidValue;
  return mock::enqueue(stream, [=] { std::memset(memory, value, bytes); });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const bool from_host = kind == cudaMemcpyHostToDevice, to_host = kind == cudaMemcpyDeviceToHost;
  if ((!from_host && !mock::here(from, bytes)) || (!to_host && !mock::here(to, bytes))) return cudaErrorInvalidValue;
  if (!from_host) return mock::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  const auto* start = static_cast<const char*>(from);
  const std::vector<char> staged(start, start + bytes);  // pageable memory may be reused at once
  return mock::enqueue(stream, [=] { std::memcpy(to, staged.data(), bytes); });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(everything);
  if (real(stream)->device != current) return cudaErrorInvalidValue;
  drain(real(stream));
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new MockEvent{current, nullptr, nullptr};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(everything);
  if (event->device != current) return cudaErrorInvalidValue;
  event->stream = real(stream);
  event->reached = std::make_shared<bool>(false);
  return mock::enqueue(stream, [reached = event->reached] { *reached = true; });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(everything);
  if (event->reached && !*event->reached) drain(event->stream);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock lock(everything);
  return mock::enqueue(stream, [other = event->stream, reached = event->reached] {
    if (reached && !*reached) drain(other);
  });
}
