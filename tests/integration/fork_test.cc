// X1: what a forked child of a program that uses the library meets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "mapbroker/error.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

class Fork : public ::testing::Test {
 protected:
  // Runs `child` in a forked child; its value is the exit status.
  static int InChild(const std::function<int()>& child) {
    const pid_t pid = fork();
    if (pid == 0) {
      alarm(static_cast<unsigned>(kDeadline.count()));
      _exit(child());
    }
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  // The mapping is attached and the session works.
  void ExpectIntact() {
    mapping_->bytes()[0] = std::byte{8};
    EXPECT_TRUE(client_->Map({.length = 4096, .flags = MAP_PRIVATE | MAP_ANONYMOUS}).ok());
    EXPECT_EQ(mapping_->bytes()[0], std::byte{8});
  }

  Daemon daemon_;
  std::optional<Client> client_ = Connect(daemon_);
  std::optional<Mapping> mapping_ =
      *client_->Map({.length = 8192, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
};

TEST_F(Fork, TheChildsFirstCallFailsAndSaysWhatToDo) {
  EXPECT_EQ(InChild([&] {
              const absl::Status status = client_->Map({.length = 4096, .flags = MAP_PRIVATE | MAP_ANONYMOUS}).status();
              if (ErrnoOf(status) != EINVAL || RuleOf(status) != "X1") return 1;
              if (status.message().find("posix_spawn") == absl::string_view::npos) return 2;
              if (ErrnoOf(client_->Statistics().status()) != EINVAL) return 3;
              if (ErrnoOf(mapping_->Unmap()) != EINVAL) return 4;
              return 0;
            }),
            0);
  ExpectIntact();
}

TEST_F(Fork, WhatTheChildDestroysStaysItsParents) {
  EXPECT_EQ(InChild([&] {
              mapping_.reset();
              client_.reset();
              return 0;
            }),
            0);
  ExpectIntact();
  EXPECT_THAT(daemon_.Log(), ::testing::Not(HasSubstr("ended")));
}

TEST_F(Fork, TheChildHasNoneOfTheMemory) {
  EXPECT_EQ(InChild([&] {
              std::signal(SIGSEGV, SIG_DFL);  // a sanitizer's handler would end the child by itself
              mapping_->bytes()[0] = std::byte{1};
              return 0;
            }),
            128 + SIGSEGV);
  ExpectIntact();
}

TEST_F(Fork, AChildOfCloneIsOne) {
  const long pid = syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr);
  if (pid == 0) _exit(RuleOf(client_->Statistics().status()) == "X1" ? 0 : 1);
  int status = 0;
  ASSERT_EQ(waitpid(static_cast<pid_t>(pid), &status, 0), pid);
  EXPECT_EQ(status, 0);
  ExpectIntact();
}

TEST_F(Fork, AVforkedChildUsesItsParentsAddressSpace) {
  // X2: what it maps is its parent's.
  const std::uint64_t used = client_->Statistics()->used;
  std::optional<Mapping> of_child;
  const pid_t pid = vfork();
  if (pid == 0) {
    absl::StatusOr<Mapping> mapped =
        client_->Map({.length = 4096, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
    if (mapped.ok()) of_child = *std::move(mapped);
    _exit(0);
  }
  waitpid(pid, nullptr, 0);
  ASSERT_TRUE(of_child.has_value());
  of_child->bytes()[0] = std::byte{3};
  EXPECT_EQ(client_->Statistics()->used, used + 4096);
  EXPECT_TRUE(of_child->Unmap().ok());
}

// Forks in the midst of other threads' calls.
TEST_F(Fork, OfAMultiThreadedProgramThatCallsMeanwhile) {
  std::atomic<bool> done = false;
  const auto call = [&] {
    Client client = Connect(daemon_);
    while (!done) {
      EXPECT_TRUE(client.Map({.length = 4096, .flags = MAP_PRIVATE | MAP_ANONYMOUS}).ok());
    }
  };
  std::thread one(call), two(call);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(InChild([&] {
                if (RuleOf(client_->Statistics().status()) != "X1") return 1;
                // It would take its parent's events.
                return RuleOf(Client::Connect({.runtime_dir = daemon_.runtime_dir()}).status()) == "X1" ? 0 : 2;
              }),
              0);
  }
  done = true;
  one.join();
  two.join();
  ExpectIntact();
}

TEST_F(Fork, TheChildMayConnectAnewOnceItHasExecutedAProgram) {
  EXPECT_EQ(InChild([&] {
              execl(MAPCTL, MAPCTL, "--runtime-dir", daemon_.runtime_dir().c_str(), "status", nullptr);
              return 1;
            }),
            0);
  ExpectIntact();
}

TEST(ForkBeforeASession, LeavesTheChildFreeToConnect) {
  const Daemon daemon;
  const Finished finished = testing::Run({FORK_FIRST, daemon.runtime_dir()});
  EXPECT_EQ(finished.status, 0) << finished.output << finished.errors;
}

}  // namespace
}  // namespace mapbroker::testing
