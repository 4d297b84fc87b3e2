#include "tests/integration/daemon.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <iostream>
#include <stdexcept>

#include "shm_backend/unique_fd.h"
#include "tests/integration/peer.h"
#include "tests/integration/raw_socket.h"

namespace mapbroker::testing {
namespace {

std::vector<std::string> DaemonCommand(const std::vector<std::string>& options, const std::string& failure_points) {
  std::vector<std::string> command = {failure_points.empty() ? MAPBROKERD : MAPBROKERD_TEST};
  command.insert(command.end(), options.begin(), options.end());
  return command;
}

}  // namespace

Daemon::Daemon(std::vector<std::string> options, const std::string& runtime_dir, const std::string& failure_points)
    : runtime_dir_(runtime_dir.empty() ? home_.Path("run") : runtime_dir) {
  if (std::find(options.begin(), options.end(), "--pool-size") == options.end()) {
    options.insert(options.end(), {"--pool-size", "64M"});
  }
  options.insert(options.end(), {"--runtime-dir", runtime_dir_});
  notify_ = Bound(files_.Path("notify"), SOCK_DGRAM);  // where a daemon says that it is ready
  process_.emplace(DaemonCommand(options, failure_points),
                   Environment{{"NOTIFY_SOCKET", files_.Path("notify")}, {"MAPBROKER_FAILURE_POINTS", failure_points}});
  WaitUntil("the daemon is ready",
            [&] { return Notification().find("READY=1") != std::string::npos || !process_->Running(); });
  if (!process_->Running()) throw std::runtime_error("mapbrokerd ended instead of serving: " + Log());
}

std::string Daemon::Notification() const {
  std::array<char, 4096> message;
  const ssize_t size = recv(notify_.get(), message.data(), message.size(), MSG_DONTWAIT);
  return size > 0 ? std::string(message.data(), static_cast<std::size_t>(size)) : std::string();
}

Daemon::~Daemon() {
  if (!stopped_) Stop();
  if (::testing::Test::HasFailure()) std::cerr << "the daemon's log:\n" << Log();
}

void Daemon::ExpectServes() {
  const std::string file = files_.MakeFile("well-behaved", 12'288);
  Peer peer(runtime_dir_);
  const MapReply mapping = peer.Map(file, {.length = 12'288});
  ASSERT_EQ(mapping.error, 0) << mapping.sentence;
  EXPECT_EQ(peer.Read(mapping), ReadFile(file));
}

void Daemon::Stop() {
  stopped_ = true;
  process_->Signal(SIGTERM);
  EXPECT_EQ(process_->Wait(), 0);
  EXPECT_EQ(home_.Entries(), std::vector<std::string>{}) << "left behind";
}

void Daemon::StopKeeping() {
  stopped_ = true;
  process_->Signal(SIGTERM);
  EXPECT_EQ(process_->Wait(), 0);
}

void Daemon::Kill() {
  stopped_ = true;
  process_->Signal(SIGKILL);
  process_->Wait();
}

int Daemon::AwaitEnd() {
  stopped_ = true;
  return process_->Wait();
}

Finished RunDaemon(const std::vector<std::string>& options, const std::string& failure_points) {
  return Run(DaemonCommand(options, failure_points), {{"MAPBROKER_FAILURE_POINTS", failure_points}});
}

Finished Mapctl(const std::string& runtime_dir, const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {MAPCTL};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return Run(command, {{"MAPBROKER_RUNTIME_DIR", runtime_dir}});
}

}  // namespace mapbroker::testing
