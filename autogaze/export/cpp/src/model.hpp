// An opened frame file, with what is derived from it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "grid.hpp"
#include "metadata.hpp"
#include "runtime.hpp"

namespace autogaze::detail {

class Model {
 public:
  // Throws Failure(AUTOGAZE_BAD_FILE) unless the tensors are those that the metadata speaks of: its numbers are used as
  // their sizes.
  Model(std::unique_ptr<Runtime> runtime, const std::string& file);

  const TensorSpec& input(const std::string& name) const;
  const TensorSpec& output(const std::string& name) const;

  std::unique_ptr<Runtime> runtime;
  Metadata metadata;
  Grid grid;
  std::vector<std::string> call;   // inputs of one call: pixels and what is asked
  std::vector<std::string> state;  // tensors that a stream hands on: X goes in, next_X comes out
};

}  // namespace autogaze::detail
