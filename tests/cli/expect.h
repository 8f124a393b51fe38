// SPDX-License-Identifier: Apache-2.0
// What tests of the program expect again and again.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "formats/json.h"
#include "program.h"

namespace quern::test {

inline std::vector<std::string> keys_missing(const Json& json,
                                             const std::vector<std::string>& keys) {
  std::vector<std::string> missing;
  for (const std::string& key : keys) {
    if (!json.contains(key)) missing.push_back(key);
  }
  return missing;
}

// Nothing on standard output, and a message that says so.
inline void expect_failure(const std::vector<std::string>& args, int code,
                           const std::string& mentions) {
  const Ran ran = run_quern(args);
  std::string line;
  for (const std::string& arg : args) line += " " + arg;
  EXPECT_EQ(ran.code, code) << line << ": " << ran.err;
  EXPECT_EQ(ran.signal, 0) << line;
  EXPECT_EQ(ran.out, "") << line;
  EXPECT_NE(ran.err.find(mentions), std::string::npos) << line << ": " << ran.err;
}

}  // namespace quern::test
