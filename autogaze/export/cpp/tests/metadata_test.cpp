#include "metadata.hpp"

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "check.hpp"
#include "grid.hpp"
#include "samples.hpp"

using namespace autogaze::detail;

TEST(metadata_reads_every_kind_of_value) {
  const Metadata metadata = read_metadata(parse_properties(samples::text()), "x");
  EQUAL(metadata.kind, std::string("frame"));
  EQUAL(metadata.scales.size(), 4u);
  EQUAL(metadata.scales[2], 112);
  EQUAL(metadata.budget, 26);
  EQUAL(metadata.largest_batch, 4);
  EQUAL(metadata.input_width, 320);
  EQUAL(metadata.uint8, true);
  EQUAL(metadata.gazing_ratio, 0.1f);
  TRUE(std::isinf(metadata.task_loss_requirement) && metadata.task_loss_requirement < 0);
}

TEST(every_format_up_to_the_newest_is_read) {
  Properties properties = parse_properties(samples::text());
  for (int format = 1; format <= kFormat; ++format) {
    properties["autogaze.format"] = std::to_string(format);
    EQUAL(read_metadata(properties, "gaze.engine").budget, 26);
  }
}

TEST(newer_foreign_and_damaged_metadata_is_refused) {
  Properties properties = parse_properties(samples::text());
  properties["autogaze.format"] = "99";
  THROWS(read_metadata(properties, "gaze.engine"), AUTOGAZE_BAD_FILE, "gaze.engine: written in format 99");
  properties.erase("autogaze.format");
  THROWS(read_metadata(properties, "gaze.engine"), AUTOGAZE_BAD_FILE, "not an autogaze export");
  properties = parse_properties(samples::text());
  properties["autogaze.budget"] = "many";
  THROWS(read_metadata(properties, "x"), AUTOGAZE_BAD_FILE, "damaged metadata (many)");
  properties["autogaze.budget"] = "0";
  THROWS(read_metadata(properties, "x"), AUTOGAZE_BAD_FILE, "a size is 1 to");
  properties["autogaze.budget"] = "1e300";
  THROWS(read_metadata(properties, "x"), AUTOGAZE_BAD_FILE, "damaged metadata (1e300)");
  properties.erase("autogaze.budget");
  THROWS(read_metadata(properties, "x"), AUTOGAZE_BAD_FILE, "lacks budget");
  for (const auto& [key, value, words] :
       std::vector<std::array<const char*, 3>>{{"scales", "8+224", "smaller than a patch"},
                                               {"scales", "", "no scales"},
                                               {"kind", "film", "(film)"},
                                               {"pixels", "int8", "(int8)"},
                                               {"batch", "4,1", "below the smallest"},
                                               {"batch", "0,1", "a size is 1 to"},
                                               {"scales", "64+32", "do not ascend"},
                                               {"scales", "16+30000", "2^20 patches"},
                                               {"scales", "32+2147483647", "a size is 1 to"},
                                               {"budget", "266", "more ids than a frame has"},
                                               {"gazing_ratio", "2", "not in (0, 1]"},
                                               {"gazing_ratio", "nan", "(nan)"},
                                               {"format", "0", "at least 1"},
                                               {"input_size", "-1,320", "a size is 1 to"},
                                               {"batch", "4", "(4)"}}) {
    properties = parse_properties(samples::text());
    properties[std::string("autogaze.") + key] = value;
    THROWS(read_metadata(properties, "x"), AUTOGAZE_BAD_FILE, words);
  }
}

TEST(specs_are_parsed) {
  const auto specs = parse_specs("frame:float16:3x224x224;budget:int32:;chosen:bool:26", "x");
  EQUAL(specs.size(), 3u);
  EQUAL(specs[0].bytes(2), 2u * 3 * 224 * 224 * 2);
  EQUAL(specs[1].shape.size(), 0u);
  EQUAL(specs[1].bytes(3), 12u);
  THROWS(parse_specs("frame:complex:3", "x"), AUTOGAZE_BAD_FILE, "unknown element type complex");
  for (const char* shape : {"0", "-3", "3x2147483647x2147483647x2147483647", "2147483648", "3x"}) {
    const auto text = std::string("frame:float32:") + shape;
    if (text.back() != 'x') THROWS(parse_specs(text, "x"), AUTOGAZE_BAD_FILE, "export");
  }
  THROWS(parse_specs("frame", "x"), AUTOGAZE_BAD_FILE, "damaged list of tensors");
}

TEST(crc32_is_the_usual_one) { EQUAL(crc32("123456789", 9), 0xCBF43926u); }

TEST(an_engine_file_reads_back_and_is_refused_when_cut_or_changed) {
  const std::string path = "metadata_test.engine", whole = samples::engine_bytes("the plan", samples::text());
  samples::write(path, whole);
  const EngineFile file = read_engine_file(path);
  EQUAL(std::string(file.plan.begin(), file.plan.end()), std::string("the plan"));
  EQUAL(file.properties.at("autogaze.budget"), std::string("26"));
  for (const std::size_t keep : {std::size_t{0}, std::size_t{20}, whole.size() - 1}) {
    samples::write(path, whole.substr(0, keep));
    THROWS(read_engine_file(path), AUTOGAZE_BAD_FILE, "cut short");
  }
  std::string changed = whole;
  changed[3] ^= 1;
  samples::write(path, changed);
  THROWS(read_engine_file(path), AUTOGAZE_BAD_FILE, "do not add up");
  samples::write(path, whole.substr(4));
  THROWS(read_engine_file(path), AUTOGAZE_BAD_FILE, "do not add up");
  THROWS(read_engine_file("gone.engine"), AUTOGAZE_BAD_FILE, "no such file");
}

TEST(a_file_that_python_wrote_is_read) {
  const char* path = std::getenv("AUTOGAZE_ENGINE_FILE");  // set by tests/export/test_cpp.py
  if (path == nullptr) return;
  const EngineFile file = read_engine_file(path);
  const Metadata metadata = read_metadata(file.properties, path);
  const Grid grid(metadata.scales, metadata.patch_size);
  std::printf("%s: plan %zu, %d patches, budget %d, batch %d to %d, %s %d x %d, %zu inputs, %zu outputs\n",
              std::filesystem::path(path).filename().c_str(), file.plan.size(), grid.patches_per_frame(),
              metadata.budget, metadata.smallest_batch, metadata.largest_batch, metadata.uint8 ? "uint8" : "float32",
              metadata.input_height, metadata.input_width,
              parse_specs(file.properties.at("engine.inputs"), path).size(),
              parse_specs(file.properties.at("engine.outputs"), path).size());
}
