#include "model.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "failure.hpp"

namespace autogaze::detail {
namespace {

const TensorSpec& find(const std::vector<TensorSpec>& specs, const std::string& name) {
  const auto found =
      std::find_if(specs.begin(), specs.end(), [&](const TensorSpec& spec) { return spec.name == name; });
  if (found == specs.end()) throw Failure(AUTOGAZE_BAD_FILE, "the file has no tensor " + name + "; export it again");
  return *found;
}

// What an input of the call must be. Formats 1 and 2 have `in_step`: false decodes a sample as if it were alone.
std::vector<TensorSpec> call_specs(const Metadata& metadata) {
  TensorSpec frame{"frame", Type::kFloat32, {3, metadata.input_height, metadata.input_width}};
  if (metadata.uint8) frame = {"frame", Type::kUint8, {metadata.input_height, metadata.input_width, 3}};
  std::vector<TensorSpec> specs = {frame, {"budget", Type::kInt32, {}}, {"requirement", Type::kFloat32, {}}};
  if (metadata.format < 3) specs.push_back({"in_step", Type::kBool, {}});
  return specs;
}

std::vector<TensorSpec> result_specs(const Metadata& metadata) {
  const std::vector<int64_t> slots = {metadata.budget};
  return {{"ids", Type::kInt64, slots},
          {"chosen", Type::kBool, slots},
          {"task_loss", Type::kFloat32, slots},
          {"count", Type::kInt32, {}}};
}

void each_once(const std::vector<TensorSpec>& specs, const std::string& file) {
  std::map<std::string, int> seen;
  for (const auto& spec : specs) {
    if (++seen[spec.name] > 1) throw Failure(AUTOGAZE_BAD_FILE, file + ": two tensors are called " + spec.name);
  }
}

}  // namespace

Model::Model(std::unique_ptr<Runtime> opened, const std::string& file)
    : runtime(std::move(opened)),
      metadata(read_metadata(runtime->properties, file)),
      grid(metadata.scales, metadata.patch_size) {
  if (metadata.kind != "frame") {
    throw Failure(AUTOGAZE_BAD_FILE, file + ": a " + metadata.kind + " file; streams need one exported without --clip");
  }
  each_once(runtime->inputs, file);
  each_once(runtime->outputs, file);
  const auto differs = [&](const TensorSpec& spec) {
    return Failure(AUTOGAZE_BAD_FILE, file + ": " + spec.name + " is not what the metadata says; export it again");
  };
  for (const auto& spec : call_specs(metadata)) {
    if (!(input(spec.name) == spec)) throw differs(spec);
    call.push_back(spec.name);
  }
  for (const auto& spec : result_specs(metadata)) {
    if (!(output(spec.name) == spec)) throw differs(spec);
  }
  for (const auto& spec : runtime->inputs) {
    spec.bytes(metadata.largest_batch);
    if (std::find(call.begin(), call.end(), spec.name) != call.end()) continue;
    const TensorSpec& next = output("next_" + spec.name);  // the two change places with every frame
    if (next.type != spec.type || next.shape != spec.shape) {
      throw Failure(AUTOGAZE_BAD_FILE,
                    file + ": " + next.name + " is not what " + spec.name + " takes; export it again");
    }
    state.push_back(spec.name);
  }
  if (runtime->outputs.size() != result_specs(metadata).size() + state.size()) {
    throw Failure(AUTOGAZE_BAD_FILE, file + ": it has outputs that nothing takes; export it again");
  }
}

const TensorSpec& Model::input(const std::string& name) const { return find(runtime->inputs, name); }
const TensorSpec& Model::output(const std::string& name) const { return find(runtime->outputs, name); }

}  // namespace autogaze::detail
