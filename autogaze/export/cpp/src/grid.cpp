#include "grid.hpp"

#include <algorithm>
#include <utility>

namespace autogaze::detail {

Grid::Grid(std::vector<int> scales_px, int patch_px) : scales_px_(std::move(scales_px)), patch_px_(patch_px) {
  offsets_.push_back(0);
  for (int scale = 0; scale < scales(); ++scale) offsets_.push_back(offsets_.back() + side(scale) * side(scale));
}

int Grid::budget(double gazing_ratio) const {
  return std::max(1, static_cast<int>(gazing_ratio * patches_per_frame()));
}

Place Grid::place(int64_t id) const {
  const auto above = std::upper_bound(offsets_.begin(), offsets_.end(), id);
  const int scale = static_cast<int>(above - offsets_.begin()) - 1;
  const int local = static_cast<int>(id) - offsets_[scale];
  return {scale, local / side(scale), local % side(scale)};
}

std::array<float, 4> Grid::box(int64_t id) const {
  const Place at = place(id);
  const float cell = static_cast<float>(tile_px()) / static_cast<float>(side(at.scale));
  return {at.column * cell, at.row * cell, (at.column + 1) * cell, (at.row + 1) * cell};
}

}  // namespace autogaze::detail
