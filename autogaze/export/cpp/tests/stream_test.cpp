#include "stream.hpp"

#include <array>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "samples.hpp"

using namespace autogaze::detail;

namespace {

std::vector<uint8_t> frames(std::initializer_list<int> first_pixels) {
  std::vector<uint8_t> data(first_pixels.size() * 240 * 320 * 3);
  std::size_t sample = 0;
  for (const int pixel : first_pixels) data[sample++ * 240 * 320 * 3] = static_cast<uint8_t>(pixel);
  return data;
}

}  // namespace

TEST(decode_keeps_choices_in_order_with_their_boxes) {
  const Grid grid({32, 64, 112, 224}, 16);
  const int64_t ids[] = {264, 7, 0};
  const uint8_t chosen[] = {1, 0, 1};
  const float losses[] = {0.5f, 0.4f, 0.3f};
  std::vector<int64_t> out;
  std::vector<float> boxes, loss;
  decode(grid, ids, chosen, losses, 3, out, boxes, loss);
  EQUAL(out.size(), 2u);
  EQUAL(out[0], 264);
  EQUAL(boxes.size(), 8u);
  EQUAL(boxes[6], 112.0f);
  EQUAL(loss[1], 0.3f);
  const int64_t wrong[] = {265};
  THROWS(decode(grid, wrong, chosen, losses, 1, out, boxes, loss), AUTOGAZE_RUNTIME, "chose id 265");
}

TEST(a_stream_carries_its_memory_from_frame_to_frame) {
  Model model(std::make_unique<samples::FakeRuntime>(), "fake");
  FrameStream stream(model, 2, nullptr);
  THROWS(stream.gaze(0), AUTOGAZE_BAD_ARGUMENT, "no frame was pushed");
  for (int frame = 0; frame < 3; ++frame) {
    stream.push(frames({30, 255}).data(), false, nullptr);
    EQUAL(stream.gaze(0).count, 3);
    EQUAL(stream.gaze(1).count, 25);
    EQUAL(stream.gaze(0).ids[0], frame);  // the fake model's first id is the frames seen
  }
  EQUAL(static_cast<samples::FakeRuntime&>(*model.runtime).synchronized.load(), 3);  // once a frame, not once a sample
  stream.reset();
  stream.push(frames({30, 30}).data(), false, nullptr);
  EQUAL(stream.gaze(1).ids[0], 0);
  THROWS(stream.gaze(2), AUTOGAZE_BAD_ARGUMENT, "sample must be 0 to 1");
}

TEST(every_input_that_is_not_of_the_call_is_carried) {
  EQUAL(Model(std::make_unique<samples::FakeRuntime>(), "fake").state.size(), 5u);
  Model model(std::make_unique<samples::FakeRuntime>(std::vector<TensorSpec>{samples::kCanvas}), "fake");
  EQUAL(model.state.size(), 6u);
  FrameStream stream(model, 2, nullptr);
  for (int begun = 0; begun < 2; ++begun) {
    for (int frame = 0; frame < 3; ++frame) {
      stream.push(frames({30, 30}).data(), false, nullptr);
      EQUAL(stream.gaze(0).ids[0], frame * 11);
      EQUAL(stream.gaze(1).ids[0], stream.gaze(0).ids[0]);
    }
    stream.reset();
  }
}

TEST(a_file_whose_memory_does_not_come_out_as_it_goes_in_is_refused) {
  auto runtime = std::make_unique<samples::FakeRuntime>(std::vector<TensorSpec>{samples::kCanvas});
  runtime->outputs.back().shape = {3, 224, 223};
  THROWS(Model(std::move(runtime), "fake"), AUTOGAZE_BAD_FILE, "fake: next_canvas is not what canvas takes");
  runtime = std::make_unique<samples::FakeRuntime>(std::vector<TensorSpec>{samples::kCanvas});
  runtime->outputs.pop_back();
  THROWS(Model(std::move(runtime), "fake"), AUTOGAZE_BAD_FILE, "no tensor next_canvas");
}

TEST(every_sample_has_its_own_request) {
  Model model(std::make_unique<samples::FakeRuntime>(), "fake");
  FrameStream stream(model, 2, nullptr);
  const autogaze_request requests[] = {{0, -1.0f}, {7, 0.25f}};
  stream.push(frames({255, 255}).data(), false, requests);
  EQUAL(stream.gaze(0).count, 0);
  EQUAL(stream.gaze(1).count, 7);
  EQUAL(stream.gaze(1).task_loss[0], 0.25f);
  const autogaze_request wrong[] = {{27, 0.0f}, {1, 0.0f}};
  THROWS(stream.push(frames({1, 1}).data(), false, wrong), AUTOGAZE_BAD_ARGUMENT, "a budget must be 0 to 26");
  const autogaze_request nan[] = {{1, std::numeric_limits<float>::quiet_NaN()}, {1, 0.0f}};
  THROWS(stream.push(frames({1, 1}).data(), false, nan), AUTOGAZE_BAD_ARGUMENT, "a number");
}

TEST(batches_outside_the_file_are_refused_and_all_memory_is_given_back) {
  {
    Model model(std::make_unique<samples::FakeRuntime>(), "fake");
    THROWS(FrameStream(model, 5, nullptr), AUTOGAZE_BAD_ARGUMENT, "takes 1 to 4 streams side by side, got 5");
    THROWS(FrameStream(model, 0, nullptr), AUTOGAZE_BAD_ARGUMENT, "got 0");
    THROWS(FrameStream(model, -1, nullptr), AUTOGAZE_BAD_ARGUMENT, "got -1");
    THROWS(FrameStream(model, std::numeric_limits<int>::max(), nullptr), AUTOGAZE_BAD_ARGUMENT, "streams side by side");
    FrameStream stream(model, 4, nullptr);
    TRUE(samples::FakeRuntime::living > 0);
  }
  EQUAL(samples::FakeRuntime::living.load(), 0);
}

TEST(tensors_that_are_not_what_the_metadata_says_are_refused) {
  for (const auto& [key, value, words] :
       std::vector<std::array<std::string, 3>>{{"budget", "27", "ids is not what"},
                                               {"budget", "1", "ids is not what"},
                                               {"input_size", "241,320", "frame is not"},
                                               {"pixels", "float32", "frame is not"},
                                               {"format", "2", "no tensor in_step"}}) {
    auto runtime = std::make_unique<samples::FakeRuntime>();
    runtime->properties["autogaze." + key] = value;
    THROWS(Model(std::move(runtime), "fake"), AUTOGAZE_BAD_FILE, words);
  }
  auto runtime = std::make_unique<samples::FakeRuntime>();
  runtime->inputs.push_back(runtime->inputs.back());
  THROWS(Model(std::move(runtime), "fake"), AUTOGAZE_BAD_FILE, "two tensors are called last_ids");
  runtime = std::make_unique<samples::FakeRuntime>();
  runtime->outputs.push_back({"more", Type::kInt64, {1}});
  THROWS(Model(std::move(runtime), "fake"), AUTOGAZE_BAD_FILE, "outputs that nothing takes");
}

TEST(files_of_formats_before_3_are_streamed_with_in_step_false) {
  auto runtime = std::make_unique<samples::FakeRuntime>();
  runtime->properties["autogaze.format"] = "2";
  runtime->inputs.push_back({"in_step", Type::kBool, {}});
  Model model(std::move(runtime), "fake");
  EQUAL(model.state.size(), 5u);
  FrameStream stream(model, 2, nullptr);
  stream.push(frames({30, 255}).data(), false, nullptr);
  EQUAL(stream.gaze(0).count, 3);
}

TEST(one_sample_begins_anew_and_the_others_go_on) {
  Model model(std::make_unique<samples::FakeRuntime>(std::vector<TensorSpec>{samples::kCanvas}), "fake");
  FrameStream stream(model, 3, nullptr);
  for (int frame = 0; frame < 5; ++frame) {
    if (frame == 3) stream.reset(1);
    stream.push(frames({30, 30, 30}).data(), false, nullptr);
    EQUAL(stream.gaze(0).ids[0], frame * 11);
    EQUAL(stream.gaze(1).ids[0], (frame < 3 ? frame : frame - 3) * 11);
    EQUAL(stream.gaze(2).ids[0], frame * 11);
  }
  THROWS(stream.reset(3), AUTOGAZE_BAD_ARGUMENT, "sample must be 0 to 2");
}

TEST(a_gaze_can_be_read_where_it_lies) {
  Model model(std::make_unique<samples::FakeRuntime>(), "fake");
  FrameStream stream(model, 2, nullptr);
  THROWS(stream.gaze_in_place(), AUTOGAZE_BAD_ARGUMENT, "no frame was pushed");
  stream.push(frames({30, 255}).data(), false, nullptr);
  const autogaze_batch_gaze all = stream.gaze_in_place();
  EQUAL(static_cast<samples::FakeRuntime&>(*model.runtime).synchronized.load(), 0);
  EQUAL(all.place, AUTOGAZE_HOST);
  EQUAL(all.batch * all.budget, 52);
  EQUAL(all.chosen[2] + all.chosen[3], 1);
  EQUAL(all.ids[26 + 24], stream.gaze(1).ids[24]);
}

TEST(a_clip_file_is_no_stream) {
  auto runtime = std::make_unique<samples::FakeRuntime>();
  runtime->properties["autogaze.kind"] = "clip";
  THROWS(Model(std::move(runtime), "clip.onnx"), AUTOGAZE_BAD_FILE, "exported without --clip");
}
