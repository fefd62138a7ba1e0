// Files and a runtime to test with.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "metadata.hpp"
#include "runtime.hpp"

namespace samples {

using autogaze::detail::Properties;
using autogaze::detail::Runtime;
using autogaze::detail::TensorSpec;
using autogaze::detail::Type;

inline std::string text() {
  return "autogaze.kind=frame\nautogaze.precision=fp16\nautogaze.scales=32+64+112+224\nautogaze.patch_size=16\n"
         "autogaze.group=10\nautogaze.budget=26\nautogaze.frames=16\nautogaze.gazing_ratio=0.1\n"
         "autogaze.task_loss_requirement=-inf\nautogaze.calibration=\nautogaze.batch=1,4\nautogaze.pixels=uint8\n"
         "autogaze.input_size=240,320\nautogaze.mean=0.0,0.0,0.0\nautogaze.std=1.0,1.0,1.0\n"
         "autogaze.rescale_factor=0.00784313725490196\nautogaze.offset=1\nautogaze.resample=bilinear\n"
         "autogaze.format=3\nautogaze.allowed_scales=32+64+112+224\n";
}

inline std::string little_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  return out;
}

inline std::string engine_bytes(const std::string& plan, const std::string& properties) {
  const std::string body = plan + properties;
  return body + little_endian(plan.size(), 8) + little_endian(properties.size(), 8) +
         little_endian(autogaze::detail::crc32(body.data(), body.size()), 4) + "AUTOGAZE";
}

inline void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline const TensorSpec kCanvas = {"canvas", Type::kFloat32, {1, 224, 224}};

// A runtime whose "model" chooses `budget` ids from (frames seen so far), one for every ten of the first pixel. One
// that has more memory begins ten ids later for every frame that each such tensor was told of.
class FakeRuntime : public Runtime {
 public:
  explicit FakeRuntime(const std::vector<TensorSpec>& more = {}) : more_(more) {
    properties = autogaze::detail::parse_properties(text());
    inputs = {{"frame", Type::kUint8, {240, 320, 3}}, {"budget", Type::kInt32, {}},
              {"requirement", Type::kFloat32, {}},    {"conv", Type::kFloat16, {4}},
              {"keys", Type::kFloat16, {4}},          {"values", Type::kFloat16, {4}},
              {"positions", Type::kInt32, {1}},       {"last_ids", Type::kInt64, {10}}};
    inputs.insert(inputs.end(), more.begin(), more.end());
    outputs = {{"ids", Type::kInt64, {26}},
               {"chosen", Type::kBool, {26}},
               {"task_loss", Type::kFloat32, {26}},
               {"count", Type::kInt32, {}}};
    for (auto spec = inputs.begin() + 3; spec != inputs.end(); ++spec) {
      outputs.push_back({"next_" + spec->name, spec->type, spec->shape});
    }
  }

  bool on_device() const override { return false; }
  void* allocate(std::size_t bytes) override {
    ++living;
    return ::operator new(bytes);
  }
  void release(void* memory) noexcept override {
    --living;
    ::operator delete(memory);
  }
  void fill_zero(void* memory, std::size_t bytes, void*) override { std::memset(memory, 0, bytes); }
  void copy_in(void* memory, const void* from, std::size_t bytes, bool, void*) override {
    std::memcpy(memory, from, bytes);
  }
  void copy_out(void* to, const void* memory, std::size_t bytes, void*) override { std::memcpy(to, memory, bytes); }
  void synchronize(void*) override { ++synchronized; }

  class FakeSession : public Session {
   public:
    explicit FakeSession(const std::vector<TensorSpec>& more) : more_(more) {}

    void run(const std::map<std::string, void*>& at, int batch, void*) override {
      const auto* frame = static_cast<const uint8_t*>(at.at("frame"));
      const auto* budget = static_cast<const int32_t*>(at.at("budget"));
      const auto* positions = static_cast<const int32_t*>(at.at("positions"));
      for (int b = 0; b < batch; ++b) {
        static_cast<int32_t*>(at.at("next_positions"))[b] = positions[b] + 1;
        int first = positions[b];
        for (const auto& spec : more_) {
          const std::size_t last = spec.bytes(b + 1) / sizeof(float) - 1;  // of the sample's: all of it must be there
          const float told = static_cast<const float*>(at.at(spec.name))[last];
          static_cast<float*>(at.at("next_" + spec.name))[last] = told + 1;
          first += 10 * static_cast<int>(told);
        }
        const int wanted = frame[b * 240 * 320 * 3] / 10;
        for (int slot = 0; slot < 26; ++slot) {
          static_cast<int64_t*>(at.at("ids"))[b * 26 + slot] = first + slot;
          static_cast<bool*>(at.at("chosen"))[b * 26 + slot] = slot < wanted && slot < budget[b];
          static_cast<float*>(at.at("task_loss"))[b * 26 + slot] = static_cast<const float*>(at.at("requirement"))[b];
        }
      }
    }

   private:
    std::vector<TensorSpec> more_;
  };
  std::unique_ptr<Session> session() override { return std::make_unique<FakeSession>(more_); }

  std::atomic<int> synchronized{0};
  static inline std::atomic<int> living{0};

 private:
  std::vector<TensorSpec> more_;
};

}  // namespace samples
