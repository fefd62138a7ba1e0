// The CUDA runtime: failures in words, work on the engine's GPU, and scratch memory that streams share.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>
#include <string>

#include "failure.hpp"

namespace autogaze::detail {

inline void check(cudaError_t error, const char* doing) {
  if (error != cudaSuccess) {
    throw Failure(AUTOGAZE_RUNTIME, std::string(doing) + ": CUDA says " + cudaGetErrorString(error));
  }
}

// Makes a GPU the calling thread's current one, and the caller's own one again at the end.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "asking for the GPU");
    if (before_ != device) check(cudaSetDevice(device), "choosing the GPU");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

// Scratch memory of an engine, as much as its largest call so far needed. Calls in several CUDA streams use it one
// after the other: each waits on the GPU, not on the host, for the one before.
class Scratch {
 public:
  explicit Scratch(int device) : device_(device) {
    const OnDevice on(device_);
    check(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "creating an event");
  }
  ~Scratch() {
    try {
      const OnDevice on(device_);
      cudaFree(memory_);
      cudaEventDestroy(done_);
    } catch (const Failure&) {
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // enqueue(memory, bytes) puts work that needs `bytes` of scratch into a stream; the engine's GPU is the current one.
  template <typename Enqueue>
  void use(std::size_t bytes, cudaStream_t stream, Enqueue enqueue) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (used_) check(cudaStreamWaitEvent(stream, done_, 0), "waiting for another stream");
    if (bytes > bytes_) grow(bytes);
    enqueue(memory_, bytes_);
    check(cudaEventRecord(done_, stream), "recording an event");
    used_ = true;
  }

 private:
  void grow(std::size_t bytes) {
    if (used_) check(cudaEventSynchronize(done_), "waiting for the GPU");
    check(cudaFree(memory_), "freeing GPU memory");
    memory_ = nullptr;
    bytes_ = 0;
    check(cudaMalloc(&memory_, bytes), "allocating scratch memory");
    bytes_ = bytes;
  }

  int device_;
  std::mutex mutex_;
  cudaEvent_t done_ = nullptr;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
  bool used_ = false;
};

}  // namespace autogaze::detail
