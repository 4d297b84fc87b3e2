// A daemon of the build, in a directory of its own, for as long as the object lives.
#pragma once

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "mapbroker/client.h"

extern char** environ;

namespace mapbroker::bench {

// A child process, killed at the end.
class Child {
 public:
  // `actions`: on its descriptors, done before it runs.
  explicit Child(std::vector<std::string> command, const posix_spawn_file_actions_t* actions = nullptr) {
    std::vector<char*> argv;
    for (std::string& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, argv[0], actions, nullptr, argv.data(), environ) != 0) {
      std::perror(argv[0]);
      std::exit(EXIT_FAILURE);
    }
  }
  ~Child() {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = 0;
};

class DaemonUnderTest {
 public:
  // `pool_size` and further options as on the command line.
  explicit DaemonUnderTest(const std::string& pool_size, const std::vector<std::string>& options = {})
      : dir_(MakeDir()), daemon_(Command(dir_, pool_size, options)) {}
  ~DaemonUnderTest() { std::filesystem::remove_all(dir_); }

  const std::string& dir() const { return dir_; }
  pid_t pid() const { return daemon_.pid(); }

  // Waits until the daemon serves.
  Client Connect() const {
    for (;;) {
      absl::StatusOr<Client> client = Client::Connect({.runtime_dir = dir_});
      if (client.ok()) return *std::move(client);
      std::this_thread::yield();
    }
  }

  // A client once all pages of the pool are resident, so that no measurement pays for that.
  Client ConnectWhenResident() const {
    Client client = Connect();
    while (client.Statistics()->prefaulted < client.Statistics()->pool_size) std::this_thread::yield();
    return client;
  }

 private:
  static std::vector<std::string> Command(const std::string& dir, const std::string& pool_size,
                                          const std::vector<std::string>& options) {
    std::vector<std::string> command = {MAPBROKERD, "--runtime-dir", dir,    "--pool-size",
                                        pool_size,  "--log-level",   "error"};
    command.insert(command.end(), options.begin(), options.end());
    return command;
  }
  static std::string MakeDir() {
    std::string pattern = std::filesystem::temp_directory_path() / "mapbroker-bench-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) std::exit(EXIT_FAILURE);
    return pattern;
  }

  std::string dir_;
  Child daemon_;
};

}  // namespace mapbroker::bench
