// SPDX-License-Identifier: Apache-2.0
// Runs the program as a user would: a child process with its output and exit code.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/check.h"

namespace quern::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kIsSanitized = true;  // slow, and shadow memory fills the address space
#else
constexpr bool kIsSanitized = false;
#endif

struct Ran {
  int code = -1;   // exit code; -1 when a signal ended it
  int signal = 0;  // that signal
  double seconds = 0;
  int64_t peak_bytes = 0;  // resident
  std::string out, err;
};

struct RunOptions {
  size_t address_space = 0;  // bytes; 0: no limit. Not applied under sanitizers.
  std::vector<std::pair<std::string, std::string>> env;
};

// A child that may be killed while it works. Standard output and error are collected by wait().
class Child {
 public:
  explicit Child(const std::vector<std::string>& args, const RunOptions& options = {}) {
    std::vector<std::string> words = {QUERN_BINARY_DIR "/quern"};
    words.insert(words.end(), args.begin(), args.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    int out[2], err[2];
    QUERN_CHECK(::pipe2(out, O_CLOEXEC) == 0 && ::pipe2(err, O_CLOEXEC) == 0);
    start_ = std::chrono::steady_clock::now();
    pid_ = ::fork();
    QUERN_CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::dup2(::open("/dev/null", O_RDONLY), 0);
      ::dup2(out[1], 1);
      ::dup2(err[1], 2);
      if (options.address_space > 0 && !kIsSanitized) {
        const rlimit limit{options.address_space, options.address_space};
        ::setrlimit(RLIMIT_AS, &limit);
      }
      for (const auto& [name, value] : options.env) ::setenv(name.c_str(), value.c_str(), 1);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(out[1]);
    ::close(err[1]);
    out_ = out[0];
    err_ = err[0];
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ <= 0) return;
    kill(SIGKILL);
    wait();
  }

  void kill(int signal) const { ::kill(pid_, signal); }
  bool is_running() const {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
  }

  Ran wait() {
    Ran ran;
    pollfd streams[2] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};
    std::string* texts[2] = {&ran.out, &ran.err};
    for (int n_open = 2; n_open > 0;) {
      ::poll(streams, 2, -1);
      for (int i = 0; i < 2; ++i) {
        if (streams[i].fd < 0 || streams[i].revents == 0) continue;
        char buffer[4096];
        const ssize_t n = ::read(streams[i].fd, buffer, sizeof(buffer));
        if (n > 0) texts[i]->append(buffer, static_cast<size_t>(n));
        if (n > 0) continue;
        ::close(streams[i].fd);
        streams[i].fd = -1;
        --n_open;
      }
    }
    int status = 0;
    rusage usage{};
    ::wait4(pid_, &status, 0, &usage);
    ran.peak_bytes = int64_t{usage.ru_maxrss} << 10;
    pid_ = 0;
    ran.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    if (WIFEXITED(status)) ran.code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) ran.signal = WTERMSIG(status);
    return ran;
  }

 private:
  pid_t pid_ = 0;
  int out_ = -1, err_ = -1;
  std::chrono::steady_clock::time_point start_;
};

inline Ran run_quern(const std::vector<std::string>& args, const RunOptions& options = {}) {
  return Child(args, options).wait();
}

}  // namespace quern::test
