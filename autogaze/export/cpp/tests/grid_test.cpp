#include "grid.hpp"

#include "check.hpp"

using namespace autogaze::detail;

TEST(ids_run_coarse_to_fine) {
  const Grid grid({32, 64, 112, 224}, 16);
  EQUAL(grid.patches_per_frame(), 265);
  const int first[] = {0, 4, 20, 69}, last[] = {3, 19, 68, 264};
  for (int scale = 0; scale < 4; ++scale) {
    EQUAL(grid.place(first[scale]).scale, scale);
    EQUAL(grid.place(first[scale]).row + grid.place(first[scale]).column, 0);
    EQUAL(grid.place(last[scale]).scale, scale);
    EQUAL(grid.place(last[scale]).row, grid.side(scale) - 1);
    EQUAL(grid.place(last[scale]).column, grid.side(scale) - 1);
  }
  TRUE(!grid.holds(-1) && grid.holds(0) && grid.holds(264) && !grid.holds(265));
}

TEST(boxes_are_in_pixels_of_the_tile) {
  const Grid grid({32, 64, 112, 224}, 16);
  const auto quarter = grid.box(0), corner = grid.box(264), second = grid.box(21);
  EQUAL(quarter[2], 112.0f);
  EQUAL(corner[0], 208.0f);
  EQUAL(corner[3], 224.0f);
  EQUAL(second[0], 32.0f);
  EQUAL(second[1], 0.0f);
  EQUAL(second[2], 64.0f);
}

TEST(every_scale_covers_the_tile_once) {
  const Grid grid({16, 48, 64}, 16);
  float area[3] = {};
  for (int64_t id = 0; id < grid.patches_per_frame(); ++id) {
    const auto box = grid.box(id);
    area[grid.place(id).scale] += (box[2] - box[0]) * (box[3] - box[1]);
  }
  for (const float sum : area) TRUE(sum > 4095.0f && sum < 4097.0f);
}

TEST(budgets_follow_the_published_rule) {
  const Grid grid({32, 64, 112, 224}, 16);
  EQUAL(grid.budget(0.1), 26);
  EQUAL(grid.budget(0.75), 198);
  EQUAL(grid.budget(1e-9), 1);
  EQUAL(grid.budget(1.0), 265);
}
