// Gaze at a video: autogaze_video GAZE.engine VIDEO OUT/gaze.json [--task-loss-requirement L]
//
// Reads with OpenCV, gazes with autogaze_trt, writes the gaze.json that `autogaze gaze` writes. The file must take
// uint8 frames of the video's size: autogaze export CHECKPOINT --trt gaze.engine --uint8 HEIGHTxWIDTH --batch 1
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "autogaze_trt.hpp"
#include "summary.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) { return std::chrono::duration<double>(Clock::now() - begun).count(); }

std::vector<int> scales_of(const autogaze::Engine& engine) {
  std::vector<int> scales;
  std::istringstream text(engine.property("autogaze.scales"));
  for (std::string scale; std::getline(text, scale, '+');) scales.push_back(std::stoi(scale));
  return scales;
}

std::string codec_of(const cv::VideoCapture& capture) {
  const int code = static_cast<int>(capture.get(cv::CAP_PROP_FOURCC));
  std::string name;
  for (int byte = 0; byte < 4; ++byte) name += static_cast<char>(code >> (8 * byte) & 0xFF);
  return name;
}

int gaze(const std::string& file, const std::string& path, const std::string& out, autogaze_request request) {
  const auto begun = Clock::now();
  const autogaze::Engine engine(file);
  const autogaze_info info = engine.info();
  if (request.budget < 0) request = {info.budget, info.task_loss_requirement};
  cv::VideoCapture capture(path);
  if (!capture.isOpened()) throw std::runtime_error(path + ": not a video that OpenCV reads");
  const int width = static_cast<int>(capture.get(cv::CAP_PROP_FRAME_WIDTH));
  const int height = static_cast<int>(capture.get(cv::CAP_PROP_FRAME_HEIGHT));
  if (!info.input_is_uint8 || info.input_width != width || info.input_height != height) {
    throw std::runtime_error(file + ": export it for this video with --uint8 " + std::to_string(height) + "x" +
                             std::to_string(width));
  }
  autogaze::Stream stream(engine);
  const std::vector<int> scales = scales_of(engine);
  const int patch = std::stoi(engine.property("autogaze.patch_size"));
  const autogaze::detail::Grid grid(scales, patch);
  autogaze::detail::Summary summary(grid, scales, patch);
  autogaze::detail::Seconds seconds;
  cv::Mat frame, rgb;
  for (;;) {
    auto started = Clock::now();
    if (!capture.read(frame)) break;
    cv::cvtColor(frame, rgb, cv::COLOR_BGR2RGB);
    seconds.decode += seconds_since(started);
    started = Clock::now();
    stream.push(rgb.data, AUTOGAZE_HOST, &request);
    const autogaze_gaze found = stream.gaze();
    summary.add(found.ids, found.count);
    seconds.gaze += seconds_since(started);
  }
  if (summary.frames() == 0) throw std::runtime_error(path + ": no frame could be decoded");
  seconds.total = seconds_since(begun);
  const std::filesystem::path target(out), temporary(out + ".part");
  std::ofstream(temporary) << summary.json(
      {std::filesystem::path(path).filename().string(), width, height, capture.get(cv::CAP_PROP_FPS), codec_of(capture),
       static_cast<int64_t>(capture.get(cv::CAP_PROP_FRAME_COUNT))},
      {file, std::stod(engine.property("autogaze.gazing_ratio")), request.task_loss_requirement, "autogaze_trt"},
      seconds);
  std::filesystem::rename(temporary, target);
  std::fprintf(stderr, "%s: %lld frames, %.1f%% of the patches, %.0f frames/s -> %s\n", path.c_str(),
               static_cast<long long>(summary.frames()), 100 * summary.ratio(), summary.frames() / seconds.gaze,
               out.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const bool asked = argc == 6 && std::string(argv[4]) == "--task-loss-requirement";
  if (argc != 4 && !asked) {
    std::fprintf(stderr, "usage: %s GAZE.engine|GAZE.onnx VIDEO OUT/gaze.json [--task-loss-requirement L]\n", argv[0]);
    return 2;
  }
  try {
    autogaze_request request{-1, 0};  // the file's defaults
    if (asked) request = {autogaze::Engine(argv[1]).info().budget, std::stof(argv[5])};
    return gaze(argv[1], argv[2], argv[3], request);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "autogaze_video: %s\n", error.what());
    return 2;
  }
}
