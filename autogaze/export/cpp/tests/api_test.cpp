#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "autogaze_trt.hpp"
#include "check.hpp"
#include "handles.hpp"
#include "samples.hpp"

namespace {

bool says(const std::string& words) { return std::string(autogaze_last_error()).find(words) != std::string::npos; }

}  // namespace

TEST(null_pointers_are_a_status_not_a_crash) {
  autogaze_engine* engine = nullptr;
  EQUAL(autogaze_engine_load(nullptr, 0, &engine), AUTOGAZE_BAD_ARGUMENT);
  TRUE(says("path must not be null"));
  EQUAL(autogaze_engine_load("x.onnx", 0, nullptr), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_engine_info(nullptr, nullptr), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_stream_create(nullptr, 1, nullptr, nullptr), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_stream_push(nullptr, nullptr, AUTOGAZE_HOST, nullptr), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_stream_gaze(nullptr, 0, nullptr), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_stream_reset(nullptr), AUTOGAZE_BAD_ARGUMENT);
  TRUE(autogaze_engine_property(nullptr, "x") == nullptr);
  autogaze_engine_free(nullptr);
  autogaze_stream_free(nullptr);
}

TEST(a_bad_file_is_named_and_nothing_is_returned) {
  samples::write("api_test.engine", "short");
  autogaze_engine* engine = reinterpret_cast<autogaze_engine*>(1);
  EQUAL(autogaze_engine_load("api_test.engine", 0, &engine), AUTOGAZE_BAD_FILE);
  TRUE(engine == nullptr);
  TRUE(says("api_test.engine: cut short"));
  EQUAL(autogaze_engine_load("model.safetensors", 0, &engine), AUTOGAZE_BAD_FILE);
  TRUE(says("expected .onnx"));
}

TEST(a_stream_works_through_the_c_api_and_keeps_its_engine) {
  auto* engine =
      new autogaze_engine{std::make_shared<autogaze::detail::Model>(std::make_unique<samples::FakeRuntime>(), "f")};
  autogaze_info info{};
  EQUAL(autogaze_engine_info(engine, &info), AUTOGAZE_OK);
  EQUAL(info.patches_per_frame, 265);
  EQUAL(std::string(autogaze_engine_property(engine, "autogaze.scales")), std::string("32+64+112+224"));
  TRUE(autogaze_engine_property(engine, "autogaze.nothing") == nullptr);
  float box[4] = {};
  EQUAL(autogaze_engine_box(engine, 264, box), AUTOGAZE_OK);
  EQUAL(box[3], 224.0f);
  EQUAL(autogaze_engine_box(engine, 265, box), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_engine_box(engine, -1, box), AUTOGAZE_BAD_ARGUMENT);
  autogaze_stream* stream = nullptr;
  EQUAL(autogaze_stream_create(engine, -1, nullptr, &stream), AUTOGAZE_BAD_ARGUMENT);
  TRUE(stream == nullptr && says("takes 1 to 4 streams side by side, got -1"));
  EQUAL(autogaze_stream_create(engine, 2, nullptr, &stream), AUTOGAZE_OK);
  autogaze_engine_free(engine);
  autogaze_gaze gaze{};
  EQUAL(autogaze_stream_gaze(stream, 0, &gaze), AUTOGAZE_BAD_ARGUMENT);
  const std::vector<uint8_t> frames(2 * 240 * 320 * 3, 50);
  EQUAL(autogaze_stream_push(stream, frames.data(), 7, nullptr), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_stream_push(stream, nullptr, AUTOGAZE_HOST, nullptr), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_stream_push(stream, frames.data(), AUTOGAZE_HOST, nullptr), AUTOGAZE_OK);
  EQUAL(autogaze_stream_gaze(stream, 2, &gaze), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_stream_gaze(stream, 1, &gaze), AUTOGAZE_OK);
  EQUAL(gaze.count, 5);
  EQUAL(gaze.boxes[2], 112.0f);
  EQUAL(autogaze_stream_reset(stream), AUTOGAZE_OK);
  EQUAL(autogaze_stream_gaze(stream, 0, &gaze), AUTOGAZE_BAD_ARGUMENT);
  autogaze_stream_free(stream);
  EQUAL(samples::FakeRuntime::living.load(), 0);
}

TEST(options_are_checked) {
  autogaze_engine* engine = nullptr;
  autogaze_options options{};
  EQUAL(autogaze_engine_open("x.onnx", nullptr, &engine), AUTOGAZE_BAD_ARGUMENT);
  EQUAL(autogaze_engine_open("x.onnx", &options, &engine), AUTOGAZE_BAD_ARGUMENT);
  TRUE(says("options.size"));
  options.size = sizeof options;
  options.threads = -1;
  EQUAL(autogaze_engine_open("x.onnx", &options, &engine), AUTOGAZE_BAD_ARGUMENT);
  TRUE(std::string(autogaze_version()).find('.') == 1);
}

TEST(several_threads_share_an_engine_and_not_a_stream) {
  auto model = std::make_shared<autogaze::detail::Model>(std::make_unique<samples::FakeRuntime>(), "f");
  autogaze_engine engine{model};
  autogaze_stream* shared = nullptr;
  EQUAL(autogaze_stream_create(&engine, 1, nullptr, &shared), AUTOGAZE_OK);
  shared->in_use.lock();  // as a call of another thread does
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int index = 0; index < 4; ++index) {
    threads.emplace_back([&, index] {
      autogaze_stream* own = nullptr;
      std::vector<uint8_t> frame(240 * 320 * 3);
      frame[0] = static_cast<uint8_t>(10 * (index + 1));
      wrong[index] += autogaze_stream_create(&engine, 1, nullptr, &own) != AUTOGAZE_OK;
      for (int t = 0; t < 50; ++t) {
        autogaze_gaze gaze{};
        wrong[index] += autogaze_stream_push(own, frame.data(), AUTOGAZE_HOST, nullptr) != AUTOGAZE_OK;
        wrong[index] += autogaze_stream_gaze(own, 0, &gaze) != AUTOGAZE_OK;
        wrong[index] += gaze.count != index + 1 || gaze.ids[0] != t;
        wrong[index] += autogaze_stream_push(shared, frame.data(), AUTOGAZE_HOST, nullptr) != AUTOGAZE_BAD_ARGUMENT;
        wrong[index] += !says("another thread's call is in this stream");
      }
      autogaze_stream_free(own);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const int count : wrong) EQUAL(count, 0);
  shared->in_use.unlock();
  autogaze_stream_free(shared);
}

TEST(a_folder_is_no_file) {
  std::filesystem::create_directory("folder.engine");
  autogaze_engine* engine = nullptr;
  EQUAL(autogaze_engine_load("folder.engine", 0, &engine), AUTOGAZE_BAD_FILE);
  TRUE(says("a folder, not a file"));
  EQUAL(autogaze_engine_load("", 0, &engine), AUTOGAZE_BAD_FILE);
}

TEST(a_missing_backend_is_named) {
#ifndef AUTOGAZE_WITH_TENSORRT
  samples::write("whole.engine", samples::engine_bytes("plan", samples::text()));
  autogaze_engine* engine = nullptr;
  EQUAL(autogaze_engine_load("whole.engine", 0, &engine), AUTOGAZE_NO_BACKEND);
  TRUE(says("whole.engine: this library was built without TensorRT"));
#endif
}

TEST(words_are_of_the_calling_thread) {
  EQUAL(autogaze_engine_load(nullptr, 0, nullptr), AUTOGAZE_BAD_ARGUMENT);
  std::string other = "nothing was said";
  std::thread([&] { other = autogaze_last_error(); }).join();
  EQUAL(other, std::string());
  TRUE(says("must not be null"));
}

TEST(the_cpp_face_throws_with_the_librarys_words) {
  try {
    autogaze::Engine engine("gone.engine");
    TRUE(false);
  } catch (const autogaze::Error& error) {
    EQUAL(error.status, AUTOGAZE_BAD_FILE);
    EQUAL(std::string(error.what()), std::string("gone.engine: no such file"));
  }
}
