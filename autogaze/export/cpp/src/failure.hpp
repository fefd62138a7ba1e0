// What goes wrong inside the library; the C API turns it into a status and words.
#pragma once

#include <stdexcept>
#include <string>

#include "autogaze_trt.h"

namespace autogaze::detail {

class Failure : public std::runtime_error {
 public:
  Failure(autogaze_status status, const std::string& words) : std::runtime_error(words), status(status) {}
  const autogaze_status status;
};

}  // namespace autogaze::detail
