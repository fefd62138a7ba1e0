// A test is a function that registers itself; a check that fails says where and goes on.
#pragma once

#include <cstdio>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "failure.hpp"

namespace check {

struct Test {
  const char* name;
  void (*body)();
};
std::vector<Test>& tests();
int& failures();

struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline void fail(const char* file, int line, const std::string& words) {
  ++failures();
  std::fprintf(stderr, "%s:%d: %s\n", file, line, words.c_str());
}

template <typename A, typename B>
void equal(const A& got, const B& want, const char* file, int line) {
  if (got == want) return;
  std::ostringstream words;
  words << "got " << got << ", want " << want;
  fail(file, line, words.str());
}

inline void throws(const std::function<void()>& work, autogaze_status status, const std::string& words,
                   const char* file, int line) {
  try {
    work();
  } catch (const autogaze::detail::Failure& failure) {
    equal(static_cast<int>(failure.status), static_cast<int>(status), file, line);
    if (std::string(failure.what()).find(words) == std::string::npos) {
      fail(file, line, std::string("said: ") + failure.what() + ", expected: " + words);
    }
    return;
  }
  fail(file, line, "did not fail, expected: " + words);
}

}  // namespace check

#define TEST(name)                                            \
  static void test_##name();                                  \
  static check::Register register_##name(#name, test_##name); \
  static void test_##name()
#define EQUAL(got, want) check::equal((got), (want), __FILE__, __LINE__)
#define TRUE(what) check::equal(static_cast<bool>(what), true, __FILE__, __LINE__)
#define THROWS(work, status, words) check::throws([&] { work; }, status, words, __FILE__, __LINE__)
