// The TensorRT backend on a mock of CUDA and TensorRT: two GPUs, streams that work only when they are waited for.
#include "mock/mock.hpp"

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "autogaze_trt.hpp"
#include "check.hpp"
#include "samples.hpp"

namespace {

const char* const kInputs = "frame:uint8:4x5x3;budget:int32:;requirement:float32:;positions:int32:1";
const char* const kOutputs = "ids:int64:26;chosen:bool:26;task_loss:float32:26;count:int32:;next_positions:int32:1";

std::string engine(const std::string& path, const std::string& plan, bool version_compatible = false) {
  std::string text = samples::text();
  text.replace(text.find("240,320"), 7, "4,5");
  text += std::string("engine.runtime=tensorrt\nengine.version=10.13.0\nengine.hardware=sm_00\nengine.inputs=") +
          kInputs + "\nengine.outputs=" + kOutputs + "\nengine.version_compatible=" + (version_compatible ? "1" : "0") +
          "\n";
  samples::write(path, samples::engine_bytes(plan + kInputs + "|" + kOutputs, text));
  return path;
}

int current() {
  int device = -1;
  cudaGetDevice(&device);
  return device;
}

std::vector<uint8_t> frames(std::initializer_list<int> first) {
  std::vector<uint8_t> pixels;
  for (const int value : first) {
    pixels.push_back(static_cast<uint8_t>(value));
    pixels.resize(pixels.size() + 59);
  }
  return pixels;
}

}  // namespace

TEST(an_engine_works_on_its_own_gpu_whatever_the_callers_is) {
  engine("mock.engine", "");
  for (const int device : {0, 1}) {
    for (const int callers : {0, 1}) {
      cudaSetDevice(callers);
      autogaze::Engine engine("mock.engine", device);
      autogaze::Stream stream(engine, 2);
      for (int t = 0; t < 3; ++t) {
        stream.push(frames({3, 25}).data());
        EQUAL(stream.gaze(1).count, 25);
        EQUAL(stream.gaze(0).ids[1], t + 1);
      }
      stream.reset(1);
      stream.push(frames({3, 25}).data());
      EQUAL(stream.gaze(0).ids[0], 3);
      EQUAL(stream.gaze(1).ids[0], 0);
      EQUAL(current(), callers);
    }
  }
  EQUAL(current(), 1);
  cudaSetDevice(0);
  EQUAL(mock::living_bytes(), 0u);
  EQUAL(mock::living_contexts(), 0);
}

TEST(a_gpu_that_is_not_there_is_a_status) {
  autogaze_engine* found = nullptr;
  EQUAL(autogaze_engine_load("mock.engine", 7, &found), AUTOGAZE_RUNTIME);
  EQUAL(current(), 0);
}

TEST(streams_share_scratch_and_wait_for_each_other) {
  autogaze::Engine engine("mock.engine");
  cudaStream_t queues[3] = {mock::make_stream(), mock::make_stream(), mock::make_stream()};
  {
    std::vector<autogaze::Stream> streams;
    std::size_t before = 0;
    for (auto* queue : queues) streams.emplace_back(engine, 2, queue);
    for (int t = 0; t < 4; ++t) {
      for (auto& stream : streams) stream.push(frames({3, 4}).data());
      if (t == 0) before = mock::living_bytes();
    }
    EQUAL(mock::living_bytes(), before);
    EQUAL(mock::largest_scratch(), 2000u);
    for (int index : {2, 0, 1}) {  // the last first: it draws the others' work along
      EQUAL(streams[index].gaze(0).ids[0], 3);
      EQUAL(streams[index].gaze(1).count, 4);
    }
    autogaze::Stream wide(engine, 4, queues[0]);  // more scratch than there is
    streams[1].push(frames({3, 4}).data());
    wide.push(frames({1, 2, 3, 4}).data());
    EQUAL(wide.gaze(3).count, 4);
    EQUAL(streams[1].gaze(0).ids[0], 4);
    EQUAL(mock::largest_scratch(), 4000u);
  }
  for (auto* queue : queues) mock::free_stream(queue);
}

TEST(an_engine_for_later_versions_may_bring_host_code_and_others_may_not) {
  engine("compatible.engine", "needs host code;", true);
  autogaze::Engine compatible("compatible.engine");
  TRUE(mock::host_code_was_allowed());
  engine("foreign.engine", "needs host code;");
  try {
    autogaze::Engine foreign("foreign.engine");
    TRUE(false);
  } catch (const autogaze::Error& error) {
    EQUAL(error.status, AUTOGAZE_BAD_FILE);
    TRUE(std::string(error.what()).find("which is not allowed") != std::string::npos);
  }
}

TEST(gazes_stay_on_the_gpu_if_asked) {
  autogaze::Engine engine("mock.engine", 1);
  cudaSetDevice(1);
  autogaze::Stream stream(engine, 2);
  void* pixels = nullptr;
  const auto host = frames({3, 4});
  cudaMalloc(&pixels, host.size());
  cudaMemcpyAsync(pixels, host.data(), host.size(), cudaMemcpyHostToDevice, nullptr);
  stream.push(pixels, AUTOGAZE_DEVICE);
  const autogaze_batch_gaze gaze = stream.gaze_in_place();
  EQUAL(gaze.place, AUTOGAZE_DEVICE);
  TRUE(mock::here(gaze.ids, sizeof(int64_t) * 52) && mock::here(gaze.count, sizeof(int32_t) * 2));
  cudaStreamSynchronize(nullptr);
  EQUAL(gaze.count[1], 4);
  cudaFree(pixels);
  cudaSetDevice(0);
}

TEST(the_log_goes_to_the_callback) {
  std::string lines;
  autogaze_options options{};
  options.log_user = &lines;
  options.log = [](void* user, int32_t severity, const char* message) {
    *static_cast<std::string*>(user) += std::to_string(severity) + " " + message + "\n";
  };
  autogaze::Engine engine("mock.engine", options);
  EQUAL(lines, std::string("3 the plan is read\n"));
  options.runtime_cache = "kernels.bin";
  try {
    autogaze::Engine cached("mock.engine", options);
    TRUE(false);
  } catch (const autogaze::Error& error) {
    EQUAL(error.status, AUTOGAZE_BAD_ARGUMENT);
  }
}

TEST(several_threads_share_an_engine) {
  autogaze::Engine engine("mock.engine", 1);
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int index = 0; index < 4; ++index) {
    threads.emplace_back([&, index] {
      cudaSetDevice(index % 2);
      autogaze::Stream stream(engine, 1);
      for (int t = 0; t < 50; ++t) {
        stream.push(frames({index + 1}).data());
        const auto gaze = stream.gaze();
        wrong[index] += gaze.count != index + 1 || gaze.ids[0] != t;
      }
      wrong[index] += current() != index % 2;
    });
  }
  for (auto& thread : threads) thread.join();
  for (const int count : wrong) EQUAL(count, 0);
}
