// What tests see of the mock besides CUDA's and TensorRT's own calls.
#pragma once

#include <cstddef>
#include <functional>

#include "cuda_runtime_api.h"

namespace mock {

constexpr int kDevices = 2;

cudaStream_t make_stream();  // on the current GPU
void free_stream(cudaStream_t stream);
// Put work into a stream; fails unless the stream is of the current GPU.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);
// Whether memory of so many bytes lies on the current GPU.
bool here(const void* memory, std::size_t bytes);
std::size_t living_bytes();  // of GPU memory, over all GPUs
int living_contexts();
std::size_t largest_scratch();  // that a context was given so far
bool host_code_was_allowed();

}  // namespace mock
