// What runs a file: TensorRT or ONNX Runtime, behind one small interface. Streams are written against it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "metadata.hpp"

namespace autogaze::detail {

// An opened file. Calls may come from several threads, one session each.
class Runtime {
 public:
  virtual ~Runtime() = default;

  Properties properties;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;

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
std::unique_ptr<Runtime> open_runtime(const std::string& path, int device);

std::unique_ptr<Runtime> open_tensorrt(const std::string& path, int device);
std::unique_ptr<Runtime> open_onnxruntime(const std::string& path, int device);

}  // namespace autogaze::detail
