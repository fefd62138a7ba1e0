#include "summary.hpp"

#include <limits>
#include <string>

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
        "\"ratio\": 0.00943396226", "\"patches_per_frame\": 265"}) {
    if (json.find(part) == std::string::npos) check::fail(__FILE__, __LINE__, std::string("lacks ") + part + ": " + json);
  }
}

TEST(text_is_quoted) { EQUAL(quoted("a\\\n"), std::string("\"a\\\\\\u000a\"")); }
