// Files that somebody damaged or forged: whatever the numbers in them say, memory is never read or written beyond its
// end. Run under the address sanitizer (-DAUTOGAZE_SANITIZE=ON); a file is either refused as such, or streams.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "samples.hpp"
#include "stream.hpp"

using namespace autogaze::detail;

namespace {

constexpr std::size_t kSmall = std::size_t{1} << 22;  // tensors up to so many bytes are really allocated

// A runtime that reads all of every input and writes all of every output, as their shapes say.
class Thorough : public samples::FakeRuntime {
 public:
  class Touch : public Session {
   public:
    explicit Touch(Thorough& runtime) : runtime_(runtime) {}
    void run(const std::map<std::string, void*>& at, int batch, void*) override {
      volatile unsigned sum = 0;
      for (const auto& spec : runtime_.inputs) {
        const auto* bytes = static_cast<const unsigned char*>(at.at(spec.name));
        for (std::size_t i = 0; i < spec.bytes(batch); ++i) sum = sum + bytes[i];
      }
      for (const auto& spec : runtime_.outputs) std::memset(at.at(spec.name), 0, spec.bytes(batch));
    }

   private:
    Thorough& runtime_;
  };
  std::unique_ptr<Session> session() override { return std::make_unique<Touch>(*this); }
};

std::string list(const std::vector<TensorSpec>& specs) {
  static const char* names[] = {"float32", "float16", "bfloat16", "int64", "int32", "bool", "uint8"};
  std::string text;
  for (const auto& spec : specs) {
    text += (text.empty() ? "" : ";") + spec.name + ":" + names[static_cast<int>(spec.type)] + ":";
    for (std::size_t i = 0; i < spec.shape.size(); ++i) text += (i ? "x" : "") + std::to_string(spec.shape[i]);
  }
  return text;
}

class Damage {
 public:
  explicit Damage(unsigned seed) : random_(seed) {}

  int below(std::size_t n) { return static_cast<int>(random_() % std::max<std::size_t>(n, 1)); }

  // One number, or one byte, or one part of the text, becomes another.
  void text(std::string& text) {
    if (text.empty()) return;
    if (below(4) == 0) {
      text[below(text.size())] = static_cast<char>(below(256));
      return;
    }
    if (below(8) == 0) {
      text.erase(below(text.size()), below(20));
      return;
    }
    const std::size_t digit = text.find_first_of("0123456789", below(text.size()));
    if (digit == std::string::npos) return;
    const std::size_t end = text.find_first_not_of("0123456789", digit);
    static const char* numbers[] = {"0",
                                    "1",
                                    "-1",
                                    "2",
                                    "3",
                                    "7",
                                    "16",
                                    "25",
                                    "27",
                                    "265",
                                    "266",
                                    "65535",
                                    "2147483647",
                                    "2147483648",
                                    "4294967297",
                                    "9223372036854775807",
                                    "1e300",
                                    "nan",
                                    "inf",
                                    "-inf",
                                    ""};
    text.replace(digit, (end == std::string::npos ? text.size() : end) - digit, numbers[below(21)]);
  }

 private:
  std::mt19937 random_;
};

// 1 if the file was streamed, 0 if it was refused; anything else is an exception, or the sanitizer's end.
int open_and_stream(const std::string& text, const std::string& in, const std::string& out) {
  try {
    auto runtime = std::make_unique<Thorough>();
    runtime->properties = parse_properties(text);
    runtime->inputs = parse_specs(in, "fuzz");
    runtime->outputs = parse_specs(out, "fuzz");
    Model model(std::move(runtime), "fuzz");
    const int batch = model.metadata.smallest_batch;
    for (const auto& specs : {model.runtime->inputs, model.runtime->outputs}) {
      for (const auto& spec : specs) {
        if (spec.bytes(batch) > kSmall) return 0;
      }
    }
    FrameStream stream(model, batch, nullptr);
    const std::size_t pixels = static_cast<std::size_t>(model.metadata.input_height) * model.metadata.input_width * 3;
    const std::vector<char> frames(batch * pixels * (model.metadata.uint8 ? 1 : sizeof(float)));
    for (int frame = 0; frame < 2; ++frame) {
      stream.push(frames.data(), false, nullptr);
      for (int sample = 0; sample < batch; ++sample) stream.gaze(sample);
    }
    stream.reset();
    return 1;
  } catch (const Failure&) {
    return 0;
  }
}

}  // namespace

TEST(forged_metadata_is_refused_or_streams_within_its_memory) {
  const samples::FakeRuntime fake({{"canvas", Type::kFloat32, {1, 4, 4}}});
  int streamed = 0, rounds = 3000;
  for (int round = 0; round < rounds; ++round) {
    Damage damage(round);
    std::string text = samples::text(), in = list(fake.inputs), out = list(fake.outputs);
    const auto shrink = [](std::string& where, const std::string& from, const std::string& to) {
      for (std::size_t at; (at = where.find(from)) != std::string::npos;) where.replace(at, from.size(), to);
    };
    shrink(text, "input_size=240,320", "input_size=24,32");  // frames that take no time
    shrink(in, "240x320", "24x32");
    for (int change = damage.below(4); change >= 0; --change) {
      const int where = damage.below(4);
      damage.text(where == 0 ? in : where == 1 ? out : text);
    }
    streamed += open_and_stream(text, in, out);
  }
  TRUE(streamed > 20 && streamed < rounds - 20);  // both happen, or this says nothing
}

TEST(damaged_engine_files_are_refused_or_read_within_their_bytes) {
  const std::string whole = samples::engine_bytes("the plan", samples::text());
  for (int round = 0; round < 2000; ++round) {
    Damage damage(round);
    std::string changed = whole;
    for (int change = damage.below(3); change >= 0; --change)
      changed[damage.below(changed.size())] ^= 1 << damage.below(8);
    changed.resize(changed.size() - damage.below(damage.below(2) ? 40 : 1));
    try {
      read_metadata(read_engine({changed.begin(), changed.end()}, "fuzz").properties, "fuzz");
    } catch (const Failure&) {
    }
  }
}
