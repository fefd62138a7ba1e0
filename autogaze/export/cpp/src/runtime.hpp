// What runs a file: TensorRT or ONNX Runtime, behind one small interface. Streams are written against it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "autogaze_trt.h"
#include "metadata.hpp"

namespace autogaze::detail {

// A line of a runtime's log: an autogaze_severity and words.
using LogCallback = std::function<void(int32_t, const char*)>;

// How to open a file.
struct Options {
  int device = 0;
  int threads = 0;            // of a CPU; 0: the runtime's own choice
  std::string runtime_cache;  // file of compiled kernels (TensorRT for RTX); empty: none
  LogCallback log;            // empty: nobody listens
};

// An opened file. Calls may come from several threads, one session each.
class Runtime {
 public:
  virtual ~Runtime() = default;

  Properties properties;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;

  // Whether its memory is that of a GPU.
  virtual bool on_device() const = 0;
  // Memory where the file runs.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
  // Ordered within `stream`; a host pointer may be reused when the call returns.
  virtual void fill_zero(void* memory, std::size_t bytes, void* stream) = 0;
  virtual void copy_in(void* memory, const void* from, std::size_t bytes, bool on_device, void* stream) = 0;
  virtual void copy_out(void* to, const void* memory, std::size_t bytes, void* stream) = 0;
  virtual void synchronize(void* stream) = 0;

  // State that one stream of calls needs, such as an execution context.
  class Session {
   public:
    virtual ~Session() = default;
    // Run a batch on tensors that lie at the given addresses, by name.
    virtual void run(const std::map<std::string, void*>& tensors, int batch, void* stream) = 0;
  };
  virtual std::unique_ptr<Session> session() = 0;
};

// Open a file with the runtime that it needs. Throws Failure.
std::unique_ptr<Runtime> open_runtime(const std::string& path, const Options& options);

std::unique_ptr<Runtime> open_tensorrt(const std::string& path, const Options& options);
std::unique_ptr<Runtime> open_onnxruntime(const std::string& path, const Options& options);

}  // namespace autogaze::detail
