#include "stream.hpp"

#include <algorithm>
#include <utility>

#include "failure.hpp"

namespace autogaze::detail {
namespace {

const std::vector<std::string> kResults = {"ids", "chosen", "task_loss", "count"};

}  // namespace

Buffer::Buffer(Runtime& runtime, std::size_t bytes)
    : runtime_(runtime), bytes_(bytes), memory_(runtime.allocate(std::max<std::size_t>(bytes, 1))) {}

Buffer::~Buffer() { runtime_.release(memory_); }

FrameStream::FrameStream(Model& model, int batch, void* cuda_stream)
    : model_(model), batch_(batch), cuda_stream_(cuda_stream) {
  if (batch < model.metadata.smallest_batch || batch > model.metadata.largest_batch) {
    throw Failure(AUTOGAZE_BAD_ARGUMENT, "this file takes " + std::to_string(model.metadata.smallest_batch) + " to " +
                                             std::to_string(model.metadata.largest_batch) +
                                             " streams side by side, got " + std::to_string(batch));
  }
  gazes_.resize(batch);
  Runtime& runtime = *model.runtime;
  session_ = runtime.session();
  for (const auto& name : model.call) {
    inputs_[name] = std::make_unique<Buffer>(runtime, model.input(name).bytes(batch));
  }
  for (const auto& name : model.state) {
    for (auto& memory : memory_) memory[name] = std::make_unique<Buffer>(runtime, model.input(name).bytes(batch));
  }
  for (const auto& name : kResults) results_[name] = std::make_unique<Buffer>(runtime, model.output(name).bytes(batch));
  // `in_step` of older formats stays false: every sample as if it were alone
  for (auto& [name, buffer] : inputs_) runtime.fill_zero(buffer->get(), buffer->bytes(), cuda_stream_);
  reset();
}

void FrameStream::reset() {
  for (auto& memory : memory_) {
    for (auto& [name, buffer] : memory) model_.runtime->fill_zero(buffer->get(), buffer->bytes(), cuda_stream_);
  }
  turn_ = 0;
  pushed_ = fetched_ = false;
}

void FrameStream::reset(int sample) {
  check_sample(sample);
  for (auto& [name, buffer] : memory_[turn_]) {  // the other half is written whole by the next call
    const std::size_t bytes = buffer->bytes() / static_cast<std::size_t>(batch_);
    model_.runtime->fill_zero(static_cast<char*>(buffer->get()) + sample * bytes, bytes, cuda_stream_);
  }
}

void FrameStream::check_sample(int sample) const {
  if (sample < 0 || sample >= batch_) {
    throw Failure(AUTOGAZE_BAD_ARGUMENT, "sample must be 0 to " + std::to_string(batch_ - 1));
  }
}

autogaze_batch_gaze FrameStream::gaze_in_place() const {
  if (!pushed_) throw Failure(AUTOGAZE_BAD_ARGUMENT, "no frame was pushed yet");
  const auto at = [&](const char* name) { return results_.at(name)->get(); };
  return {model_.runtime->on_device() ? AUTOGAZE_DEVICE : AUTOGAZE_HOST,
          batch_,
          model_.metadata.budget,
          static_cast<const int64_t*>(at("ids")),
          static_cast<const uint8_t*>(at("chosen")),
          static_cast<const float*>(at("task_loss")),
          static_cast<const int32_t*>(at("count"))};
}

void FrameStream::push(const void* frames, bool on_device, const autogaze_request* requests) {
  Runtime& runtime = *model_.runtime;
  std::vector<int32_t> budgets(batch_, model_.metadata.budget);
  std::vector<float> requirements(batch_, model_.metadata.task_loss_requirement);
  for (int sample = 0; requests != nullptr && sample < batch_; ++sample) {
    budgets[sample] = requests[sample].budget;
    requirements[sample] = requests[sample].task_loss_requirement;
    if (budgets[sample] < 0 || budgets[sample] > model_.metadata.budget ||
        requirements[sample] != requirements[sample]) {
      throw Failure(AUTOGAZE_BAD_ARGUMENT, "a budget must be 0 to " + std::to_string(model_.metadata.budget) +
                                               " ids and a requirement a number");
    }
  }
  runtime.copy_in(input("frame").get(), frames, input("frame").bytes(), on_device, cuda_stream_);
  runtime.copy_in(input("budget").get(), budgets.data(), input("budget").bytes(), false, cuda_stream_);
  runtime.copy_in(input("requirement").get(), requirements.data(), input("requirement").bytes(), false, cuda_stream_);
  std::map<std::string, void*> tensors;
  for (const auto& [name, buffer] : inputs_) tensors[name] = buffer->get();
  for (const auto& [name, buffer] : results_) tensors[name] = buffer->get();
  for (const auto& name : model_.state) {
    tensors[name] = memory_[turn_].at(name)->get();
    tensors["next_" + name] = memory_[1 - turn_].at(name)->get();
  }
  session_->run(tensors, batch_, cuda_stream_);
  turn_ = 1 - turn_;
  pushed_ = true;
  fetched_ = false;
}

void FrameStream::fetch() {
  const int slots = model_.metadata.budget;
  const std::size_t all = static_cast<std::size_t>(batch_) * slots;
  std::vector<int64_t> ids(all);
  std::vector<uint8_t> chosen(all);
  std::vector<float> losses(all);
  Runtime& runtime = *model_.runtime;
  runtime.copy_out(ids.data(), results_.at("ids")->get(), all * sizeof(int64_t), cuda_stream_);
  runtime.copy_out(chosen.data(), results_.at("chosen")->get(), all, cuda_stream_);
  runtime.copy_out(losses.data(), results_.at("task_loss")->get(), all * sizeof(float), cuda_stream_);
  runtime.synchronize(cuda_stream_);
  for (int sample = 0; sample < batch_; ++sample) {
    const std::size_t start = static_cast<std::size_t>(sample) * slots;
    Result& result = gazes_[sample];
    decode(model_.grid, ids.data() + start, chosen.data() + start, losses.data() + start, slots, result.ids,
           result.boxes, result.task_loss);
  }
  fetched_ = true;
}

autogaze_gaze FrameStream::gaze(int sample) {
  if (!pushed_) throw Failure(AUTOGAZE_BAD_ARGUMENT, "no frame was pushed yet");
  check_sample(sample);
  if (!fetched_) fetch();
  const Result& result = gazes_[sample];
  return {static_cast<int32_t>(result.ids.size()), result.ids.data(), result.boxes.data(), result.task_loss.data()};
}

void decode(const Grid& grid, const int64_t* ids, const uint8_t* chosen, const float* losses, int slots,
            std::vector<int64_t>& out_ids, std::vector<float>& out_boxes, std::vector<float>& out_losses) {
  out_ids.clear();
  out_boxes.clear();
  out_losses.clear();
  for (int slot = 0; slot < slots; ++slot) {
    if (!chosen[slot]) continue;
    if (!grid.holds(ids[slot])) {
      throw Failure(AUTOGAZE_RUNTIME, "the file chose id " + std::to_string(ids[slot]) + ", a frame has " +
                                          std::to_string(grid.patches_per_frame()));
    }
    const auto box = grid.box(ids[slot]);
    out_ids.push_back(ids[slot]);
    out_boxes.insert(out_boxes.end(), box.begin(), box.end());
    out_losses.push_back(losses[slot]);
  }
}

}  // namespace autogaze::detail
