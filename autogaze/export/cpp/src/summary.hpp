// gaze.json, as `autogaze gaze` writes it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "grid.hpp"

namespace autogaze::detail {

struct VideoFacts {
  std::string name;
  int width = 0;
  int height = 0;
  double fps = 0;
  std::string codec;
  int64_t frames_in_container = 0;
};

struct ModelFacts {
  std::string checkpoint;
  double gazing_ratio = 0;
  double task_loss_requirement = 0;  // -infinity: never stops
  std::string device;
};

struct Seconds {
  double decode = 0;
  double gaze = 0;
  double total = 0;
};

// Collects the gaze of every frame and writes the summary.
class Summary {
 public:
  Summary(const Grid& grid, std::vector<int> scales_px, int patch_px);

  void add(const int64_t* ids, int count);
  int64_t frames() const { return static_cast<int64_t>(counts_.size()); }
  double ratio() const;
  std::string json(const VideoFacts& video, const ModelFacts& model, const Seconds& seconds) const;

 private:
  const Grid& grid_;
  std::vector<int> scales_px_;
  int patch_px_;
  std::vector<int64_t> per_scale_;
  std::vector<int> counts_;
  int64_t patches_ = 0;
};

// A JSON string with its quotes.
std::string quoted(const std::string& text);

}  // namespace autogaze::detail
