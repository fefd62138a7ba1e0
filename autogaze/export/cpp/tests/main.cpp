#include <exception>

#include "check.hpp"

namespace check {
std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
int& failures() {
  static int count = 0;
  return count;
}
}  // namespace check

int main() {
  for (const auto& test : check::tests()) {
    try {
      test.body();
    } catch (const std::exception& error) {
      check::fail(test.name, 0, std::string("threw: ") + error.what());
    }
  }
  std::printf("%zu tests, %d failures\n", check::tests().size(), check::failures());
  return check::failures() == 0 ? 0 : 1;
}
