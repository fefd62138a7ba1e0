#include "metadata.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <tuple>

#include "failure.hpp"

namespace autogaze::detail {
namespace {

constexpr char kPrefix[] = "autogaze.";
constexpr char kMagic[] = "AUTOGAZE";
constexpr std::size_t kMagicSize = 8;
constexpr std::size_t kFooter = 8 + 8 + 4 + kMagicSize;  // plan bytes, text bytes, checksum, magic

[[noreturn]] void bad(const std::string& file, const std::string& words) {
  throw Failure(AUTOGAZE_BAD_FILE, file + ": " + words);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

// Numbers are read without the locale's say.
double number(const std::string& text) {
  if (text == "-inf") return -std::numeric_limits<double>::infinity();
  if (text == "inf") return std::numeric_limits<double>::infinity();
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  if (!(stream >> value) || !(stream >> std::ws).eof()) throw std::invalid_argument(text);
  return value;
}

int integer(const std::string& text) {
  const double value = number(text);
  const double limit = std::numeric_limits<int>::max();
  if (!(value >= -limit && value <= limit) || value != static_cast<int>(value)) throw std::invalid_argument(text);
  return static_cast<int>(value);
}

int size(const std::string& text) {
  const int value = integer(text);
  if (value < 1 || value > kLargest) throw std::invalid_argument(text + ": a size is 1 to " + std::to_string(kLargest));
  return value;
}

std::pair<int, int> pair(const std::string& text) {
  const auto parts = split(text, ',');
  if (parts.size() != 2) throw std::invalid_argument(text);
  return {size(parts[0]), size(parts[1])};
}

// Numbers that are used as they stand, together.
void check(const Metadata& metadata) {
  if (metadata.format < 1) throw std::invalid_argument("a format is at least 1");
  if (metadata.scales.empty()) throw std::invalid_argument("no scales");
  int64_t patches = 0;
  int before = 0;
  for (const int scale : metadata.scales) {
    if (scale < metadata.patch_size) throw std::invalid_argument("a scale is smaller than a patch");
    if (scale <= before) throw std::invalid_argument("scales do not ascend");
    const int64_t side = (before = scale) / metadata.patch_size;
    patches += side * side;
  }
  if (patches > kMostPatches) throw std::invalid_argument("more than 2^20 patches a frame");
  if (metadata.budget > patches) throw std::invalid_argument("a budget of more ids than a frame has");
  if (metadata.largest_batch < metadata.smallest_batch)
    throw std::invalid_argument("a largest batch below the smallest");
  if (!(metadata.gazing_ratio > 0 && metadata.gazing_ratio <= 1))
    throw std::invalid_argument("gazing_ratio not in (0, 1]");
  if (std::isnan(metadata.task_loss_requirement)) throw std::invalid_argument("a requirement that is no number");
}

const std::string& word(const std::string& text, const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), text) == known.end()) throw std::invalid_argument(text);
  return text;
}

uint64_t little_endian(const char* bytes, int count) {
  uint64_t value = 0;
  for (int i = count - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

Type parse_type(const std::string& name, const std::string& file) {
  static const std::map<std::string, Type> types = {
      {"float32", Type::kFloat32}, {"float16", Type::kFloat16}, {"bfloat16", Type::kBFloat16}, {"int64", Type::kInt64},
      {"int32", Type::kInt32},     {"bool", Type::kBool},       {"uint8", Type::kUint8}};
  const auto found = types.find(name);
  if (found == types.end()) bad(file, "unknown element type " + name);
  return found->second;
}

}  // namespace

std::size_t size_of(Type type) {
  switch (type) {
    case Type::kInt64:
      return 8;
    case Type::kFloat32:
    case Type::kInt32:
      return 4;
    case Type::kFloat16:
    case Type::kBFloat16:
      return 2;
    case Type::kBool:
    case Type::kUint8:
      return 1;
  }
  return 0;
}

std::size_t TensorSpec::bytes(int batch) const {
  std::size_t count = size_of(type) * static_cast<std::size_t>(batch);
  for (const int64_t side : shape) {
    if (side < 1 || static_cast<std::size_t>(side) > kMostBytes / count) {
      bad(name, "a side of " + std::to_string(side) + " makes no tensor of at most 2^40 bytes; export the file again");
    }
    count *= static_cast<std::size_t>(side);
  }
  return count;
}

bool TensorSpec::operator==(const TensorSpec& other) const {
  return name == other.name && type == other.type && shape == other.shape;
}

Properties parse_properties(const std::string& text) {
  Properties properties;
  for (const auto& line : split(text, '\n')) {
    const auto equals = line.find('=');
    if (equals != std::string::npos) properties[line.substr(0, equals)] = line.substr(equals + 1);
  }
  return properties;
}

Metadata read_metadata(const Properties& properties, const std::string& file) {
  const auto get = [&](const std::string& name) -> const std::string& {
    const auto found = properties.find(kPrefix + name);
    if (found == properties.end()) bad(file, "metadata lacks " + name + "; export it again");
    return found->second;
  };
  if (properties.find(std::string(kPrefix) + "format") == properties.end()) {
    bad(file, "not an autogaze export (it has no autogaze.format); make one with `autogaze export`");
  }
  try {
    Metadata metadata;
    metadata.format = integer(get("format"));
    if (metadata.format > kFormat) {
      bad(file, "written in format " + std::to_string(metadata.format) + ", this library reads up to " +
                    std::to_string(kFormat) + "; update it");
    }
    metadata.kind = word(get("kind"), {"frame", "clip"});
    metadata.precision = get("precision");
    for (const auto& scale : split(get("scales"), '+')) metadata.scales.push_back(size(scale));
    metadata.patch_size = size(get("patch_size"));
    metadata.group = size(get("group"));
    metadata.budget = size(get("budget"));
    metadata.frames = size(get("frames"));
    std::tie(metadata.smallest_batch, metadata.largest_batch) = pair(get("batch"));
    std::tie(metadata.input_height, metadata.input_width) = pair(get("input_size"));
    metadata.uint8 = word(get("pixels"), {"uint8", "float32"}) == "uint8";
    metadata.gazing_ratio = static_cast<float>(number(get("gazing_ratio")));
    metadata.task_loss_requirement = static_cast<float>(number(get("task_loss_requirement")));
    check(metadata);
    return metadata;
  } catch (const std::invalid_argument& error) {
    bad(file, std::string("damaged metadata (") + error.what() + "); export it again");
  }
}

std::vector<TensorSpec> parse_specs(const std::string& text, const std::string& file) {
  std::vector<TensorSpec> specs;
  for (const auto& part : split(text, ';')) {
    const auto fields = split(part, ':');
    if (fields.size() < 2) bad(file, "damaged list of tensors; export it again");
    TensorSpec spec;
    spec.name = fields[0];
    spec.type = parse_type(fields[1], file);
    try {
      if (fields.size() > 2) {
        for (const auto& side : split(fields[2], 'x')) spec.shape.push_back(integer(side));
        spec.bytes(1);
      }
    } catch (const std::invalid_argument&) {
      bad(file, "damaged list of tensors; export it again");
    }
    specs.push_back(spec);
  }
  return specs;
}

EngineFile read_engine_file(const std::string& path) {
  std::error_code unknown;
  if (std::filesystem::is_directory(path, unknown)) bad(path, "a folder, not a file");
  std::ifstream stream(path, std::ios::binary);
  if (!stream) bad(path, "no such file");
  return read_engine({std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()}, path);
}

EngineFile read_engine(std::vector<char> data, const std::string& path) {
  if (data.size() < kFooter || std::memcmp(data.data() + data.size() - kMagicSize, kMagic, kMagicSize) != 0) {
    bad(path, "cut short, or not an engine that `autogaze export --trt` wrote");
  }
  const char* footer = data.data() + data.size() - kFooter;
  const uint64_t plan = little_endian(footer, 8), text = little_endian(footer + 8, 8);
  const uint64_t body = data.size() - kFooter;
  if (plan > body || text != body - plan || crc32(data.data(), body) != little_endian(footer + 16, 4)) {
    bad(path, "damaged, its parts do not add up; export it again");
  }
  EngineFile file;
  file.properties = parse_properties(std::string(data.data() + plan, text));
  data.resize(plan);
  file.plan = std::move(data);
  return file;
}

uint32_t crc32(const char* data, std::size_t size) {
  static const auto table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xEDB88320u ^ (value >> 1) : value >> 1;
      entries[i] = value;
    }
    return entries;
  }();
  uint32_t sum = 0xFFFFFFFFu;
  for (std::size_t i = 0; i < size; ++i) sum = table[(sum ^ static_cast<unsigned char>(data[i])) & 0xFF] ^ (sum >> 8);
  return sum ^ 0xFFFFFFFFu;
}

}  // namespace autogaze::detail
