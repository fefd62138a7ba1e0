// The patch grid: arithmetic between ids, places and pixel boxes. Same as autogaze/grid.py for a square frame.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace autogaze::detail {

struct Place {
  int scale = 0;  // index, 0 is the coarsest
  int row = 0;
  int column = 0;
};

class Grid {
 public:
  Grid(std::vector<int> scales_px, int patch_px);

  int patches_per_frame() const { return offsets_.back(); }
  int scales() const { return static_cast<int>(scales_px_.size()); }
  int side(int scale) const { return scales_px_[scale] / patch_px_; }
  int tile_px() const { return scales_px_.back(); }
  // Most ids at a gazing ratio: max(1, int(ratio * ids)).
  int budget(double gazing_ratio) const;
  bool holds(int64_t id) const { return id >= 0 && id < patches_per_frame(); }
  Place place(int64_t id) const;
  // Left, top, right, bottom in pixels of the tile.
  std::array<float, 4> box(int64_t id) const;

 private:
  std::vector<int> scales_px_;
  int patch_px_;
  std::vector<int> offsets_;  // first id of every scale, then their number
};

}  // namespace autogaze::detail
