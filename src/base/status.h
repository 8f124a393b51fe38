// SPDX-License-Identifier: Apache-2.0
// Errors that are the user's to mend: a file, a recipe, a shape. Every message says what, where,
// got and expected: "safetensors: tensor 'x': offsets [0, 9) exceed file size 4".
#pragma once

#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace quern {

enum class ErrorKind {
  kFailed,     // the work could not be done (exit code 1)
  kUsage,      // the request itself is wrong: flags, recipe, arguments (exit code 2)
  kCancelled,  // stopped by the user
};

struct Error {
  ErrorKind kind = ErrorKind::kFailed;
  std::string message;
};

template <class T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using tl::expected<T, Error>::expected;
};

using Status = Result<void>;

template <class... Args>
tl::unexpected<Error> error(fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(
      Error{ErrorKind::kFailed, fmt::format(format, std::forward<Args>(args)...)});
}

template <class... Args>
tl::unexpected<Error> usage_error(fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(
      Error{ErrorKind::kUsage, fmt::format(format, std::forward<Args>(args)...)});
}

inline tl::unexpected<Error> cancelled() {
  return tl::unexpected<Error>(Error{ErrorKind::kCancelled, "cancelled"});
}

// Puts "where: " in front of an error on its way up.
inline Error in_context(Error error, std::string_view where) {
  error.message = fmt::format("{}: {}", where, error.message);
  return error;
}

}  // namespace quern

#define QUERN_CONCAT_(a, b) a##b
#define QUERN_CONCAT(a, b) QUERN_CONCAT_(a, b)

// Returns the error of `expr` from the enclosing function, if it has one.
#define QUERN_TRY(expr)                                                         \
  do {                                                                          \
    if (auto quern_status = (expr); !quern_status) {                            \
      return ::tl::unexpected<::quern::Error>(std::move(quern_status).error()); \
    }                                                                           \
  } while (false)

// Declares or assigns `target` from a Result, or returns its error.
#define QUERN_ASSIGN(target, expr) \
  QUERN_ASSIGN_(QUERN_CONCAT(quern_result_, __LINE__), target, expr)
#define QUERN_ASSIGN_(result, target, expr)                             \
  auto result = (expr);                                                 \
  if (!result) {                                                        \
    return ::tl::unexpected<::quern::Error>(std::move(result).error()); \
  }                                                                     \
  target = std::move(*result)
