#include "summary.hpp"

#include <cmath>
#include <cstdio>
#include <locale>
#include <sstream>
#include <utility>

namespace autogaze::detail {
namespace {

// A JSON number with as many digits as it needs to be read back; JSON has no infinities, null stands for "never".
std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  for (int digits = 15;; ++digits) {
    std::stringstream out;
    out.imbue(std::locale::classic());
    out.precision(digits);
    out << value;
    double back = 0;
    if ((out >> back && back == value) || digits == 17) return out.str();
  }
}

}  // namespace

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += std::string("\\") + c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

Summary::Summary(const Grid& grid, std::vector<int> scales_px, int patch_px)
    : grid_(grid), scales_px_(std::move(scales_px)), patch_px_(patch_px), per_scale_(scales_px_.size(), 0) {}

void Summary::add(const int64_t* ids, int count) {
  for (int i = 0; i < count; ++i) ++per_scale_[grid_.place(ids[i]).scale];
  counts_.push_back(count);
  patches_ += count;
}

double Summary::ratio() const {
  const double all = static_cast<double>(counts_.size()) * grid_.patches_per_frame();
  return all > 0 ? static_cast<double>(patches_) / all : 0;
}

std::string Summary::json(const VideoFacts& video, const ModelFacts& model, const Seconds& seconds) const {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << "{\n \"video\": {\"name\": " << quoted(video.name) << ", \"width\": " << video.width
      << ", \"height\": " << video.height << ", \"fps\": " << number(video.fps)
      << ", \"codec\": " << quoted(video.codec) << ", \"frames_in_container\": " << video.frames_in_container
      << ", \"frames_decoded\": " << frames() << "},\n"
      << " \"model\": {\"checkpoint\": " << quoted(model.checkpoint)
      << ", \"gazing_ratio\": " << number(model.gazing_ratio)
      << ", \"task_loss_requirement\": " << number(model.task_loss_requirement)
      << ", \"tiles\": false, \"gaze_stride\": 1, \"device\": " << quoted(model.device)
      << "},\n \"grid\": {\"scales\": [";
  for (std::size_t i = 0; i < scales_px_.size(); ++i) out << (i ? ", " : "") << scales_px_[i];
  out << "], \"patch_size\": " << patch_px_ << ", \"frame_size\": null},\n"
      << " \"patches_per_frame\": " << grid_.patches_per_frame() << ",\n \"frames\": " << frames()
      << ",\n \"ratio\": " << number(ratio()) << ",\n \"patches\": " << patches_ << ",\n \"patches_per_scale\": {";
  for (std::size_t i = 0; i < scales_px_.size(); ++i) {
    out << (i ? ", " : "") << '"' << scales_px_[i] << "\": " << per_scale_[i];
  }
  out << "},\n \"seconds\": {\"decode\": " << number(seconds.decode) << ", \"gaze\": " << number(seconds.gaze)
      << ", \"write\": 0, \"report\": 0, \"total\": " << number(seconds.total) << "},\n \"counts\": [";
  for (std::size_t i = 0; i < counts_.size(); ++i) out << (i ? ", " : "") << counts_[i];
  out << "]\n}\n";
  return out.str();
}

}  // namespace autogaze::detail
