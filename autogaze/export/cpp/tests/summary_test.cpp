#include "summary.hpp"

#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"

using namespace autogaze::detail;

TEST(the_summary_counts_by_scale) {
  const Grid grid({32, 64, 112, 224}, 16);
  Summary summary(grid, {32, 64, 112, 224}, 16);
  const int64_t ids[] = {0, 3, 4, 69, 264};
  summary.add(ids, 5);
  summary.add(ids, 0);
  EQUAL(summary.frames(), 2);
  const std::string json = summary.json({"a\"b.mp4", 320, 240, 12.5, "h264", 2},
                                        {"gaze.engine", 0.1, -std::numeric_limits<double>::infinity(), "cuda"}, {});
  for (const char* part :
       {"\"name\": \"a\\\"b.mp4\"", "\"fps\": 12.5", "\"task_loss_requirement\": null", "\"frame_size\": null",
        "\"patches_per_scale\": {\"32\": 2, \"64\": 1, \"112\": 0, \"224\": 2}", "\"counts\": [5, 0]",
        "\"ratio\": 0.009433962264150943", "\"patches_per_frame\": 265"}) {
    if (json.find(part) == std::string::npos)
      check::fail(__FILE__, __LINE__, std::string("lacks ") + part + ": " + json);
  }
}

TEST(text_is_quoted) { EQUAL(quoted("a\\\n"), std::string("\"a\\\\\\u000a\"")); }

// A text file that tests/export/test_cpp.py writes: name, codec, width, height, fps, frames; scales; patch; ids a
// frame.
TEST(a_summary_for_python_to_compare) {
  const char* path = std::getenv("AUTOGAZE_GAZES");
  if (path == nullptr) return;
  std::ifstream file(path);
  VideoFacts video;
  std::getline(file, video.name);
  std::getline(file, video.codec);
  int scales = 0, patch = 0;
  file >> video.width >> video.height >> video.fps >> video.frames_in_container >> patch >> scales;
  std::vector<int> scales_px(scales);
  for (int& scale : scales_px) file >> scale;
  const Grid grid(scales_px, patch);
  Summary summary(grid, scales_px, patch);
  for (int count = 0; file >> count;) {
    std::vector<int64_t> ids(count);
    for (int64_t& id : ids) file >> id;
    summary.add(ids.data(), count);
  }
  std::ofstream(std::string(path) + ".json") << summary.json(video, {"x", 0.1, 0.7, "cpu"}, {});
}
