// What an exported file says about itself. Same keys and values as autogaze/export/metadata.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace autogaze::detail {

constexpr int kFormat = 3;         // newest that is read, as FORMAT of metadata.py (a test compares); newer: refused
constexpr int kLargest = 1 << 15;  // of any size in a file: pixels, ids, frames, samples (LARGEST there)
constexpr int kMostPatches = 1 << 20;                     // ids a frame
constexpr std::size_t kMostBytes = std::size_t{1} << 40;  // of one tensor

using Properties = std::map<std::string, std::string>;

enum class Type { kFloat32, kFloat16, kBFloat16, kInt64, kInt32, kBool, kUint8 };

std::size_t size_of(Type type);

// An input or output; its shape is without the batch.
struct TensorSpec {
  std::string name;
  Type type = Type::kFloat32;
  std::vector<int64_t> shape;

  // Throws Failure(AUTOGAZE_BAD_FILE) on a side that is not positive, and on more than kMostBytes.
  std::size_t bytes(int batch) const;
  bool operator==(const TensorSpec& other) const;
};

struct Metadata {
  int format = kFormat;
  std::string kind;
  std::string precision;
  std::vector<int> scales;  // pixels, ascending
  int patch_size = 0;       // pixels
  int group = 0;            // ids a decode step
  int budget = 0;           // most ids a frame may spend
  int frames = 0;           // frames remembered, or of a clip
  int smallest_batch = 1;
  int largest_batch = 1;
  bool uint8 = false;
  int input_height = 0;  // pixels
  int input_width = 0;
  float gazing_ratio = 1;
  float task_loss_requirement = 0;
};

// "key=value" lines.
Properties parse_properties(const std::string& text);

// Throws Failure(AUTOGAZE_BAD_FILE) if the properties are not ours, of a newer format, or damaged.
Metadata read_metadata(const Properties& properties, const std::string& file);

// "frame:float32:3x224x224;budget:int32:"
std::vector<TensorSpec> parse_specs(const std::string& text, const std::string& file);

// An .engine file: a TensorRT plan with properties and a footer behind it (autogaze/export/engine_file.py).
struct EngineFile {
  std::vector<char> plan;
  Properties properties;
};

// Throws Failure(AUTOGAZE_BAD_FILE) if the file is not there, cut short or damaged.
EngineFile read_engine_file(const std::string& path);
EngineFile read_engine(std::vector<char> data, const std::string& path);

uint32_t crc32(const char* data, std::size_t size);

}  // namespace autogaze::detail
