// mapbrokerd under a service manager: sockets that are passed, the pool in its store, what the daemon says of itself.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <future>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/child.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"
#include "tests/integration/raw_socket.h"
#include "tests/integration/temp_dir.h"

namespace mapbroker::testing {
namespace {

using shm::UniqueFd;
using ::testing::HasSubstr;

constexpr std::uint64_t kSize = 5 * 4096;
constexpr MapOptions kAnonymous{.length = kSize, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};

// Plays what systemd does for a service of two sockets and a store.
class ServiceManager {
 public:
  ServiceManager() {
    mkdir(SocketDir().c_str(), 0755);
    sockets_.push_back(Bound(SocketDir() + "/handoff.sock", SOCK_SEQPACKET));
    sockets_.push_back(Bound(SocketDir() + "/mapbroker.sock", SOCK_STREAM));
    for (const UniqueFd& socket : sockets_) listen(socket.get(), SOMAXCONN);
  }

  std::string SocketDir() const { return home_.Path("sockets"); }
  std::string StateDir() const { return home_.Path("state"); }
  std::string Log() const { return daemon_->Errors(); }
  pid_t pid() const { return daemon_->pid(); }
  const std::string& status() const { return status_; }
  int watchdog_pings() const { return watchdog_pings_; }
  std::map<std::string, UniqueFd>& store() { return store_; }
  // Passed to the next daemon beside the sockets and the store.
  void PassAlso(const std::string& name, UniqueFd fd) { others_.emplace_back(name, std::move(fd)); }

  // Starts the daemon and waits until it is ready.
  void Start(const std::vector<std::string>& options = {"--keep-state"}, const Environment& environment = {}) {
    std::vector<int> passed;
    std::vector<std::string> names;
    for (const UniqueFd& socket : sockets_) {
      passed.push_back(socket.get());
      names.emplace_back("mapbrokerd.socket");
    }
    for (const auto& [name, fd] : store_) {
      passed.push_back(fd.get());
      names.push_back(name);
    }
    for (const auto& [name, fd] : others_) {
      passed.push_back(fd.get());
      names.push_back(name);
    }
    std::string all_names;
    for (const std::string& name : names) all_names += (all_names.empty() ? "" : ":") + name;
    // Only the process itself can tell its number before it runs.
    std::vector<std::string> command = {
        "/bin/sh",       "-c",      "LISTEN_PID=$$ exec \"$@\"", "sh", MAPBROKERD, "--pool-size", "64M",
        "--runtime-dir", StateDir()};
    command.insert(command.end(), options.begin(), options.end());
    Environment all = environment;
    all.insert(all.end(), {{"NOTIFY_SOCKET", home_.Path("notify")},
                           {"LISTEN_FDS", std::to_string(passed.size())},
                           {"LISTEN_FDNAMES", all_names}});
    ready_ = false;
    daemon_.emplace(command, all, passed);
    WaitUntil("the daemon is ready", [&] { return Listen(), ready_ || !daemon_->Running(); });
    if (!ready_) throw std::runtime_error("mapbrokerd ended instead of serving: " + Log());
    others_.clear();
  }

  void Kill() {
    daemon_->Signal(SIGKILL);
    daemon_->Wait();
  }
  void Stop(int signal) {
    daemon_->Signal(signal);
    EXPECT_EQ(daemon_->Wait(), 0);
    Listen();
  }

  // Takes what the daemon has said so far.
  void Listen() {
    for (;;) {
      std::array<char, 4096> text;
      alignas(cmsghdr) std::array<char, CMSG_SPACE(8 * sizeof(int))> control;
      iovec part{.iov_base = text.data(), .iov_len = text.size()};
      msghdr message{};
      message.msg_iov = &part;
      message.msg_iovlen = 1;
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      const ssize_t size = recvmsg(notify_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
      if (size <= 0) return;
      UniqueFd fd;
      if (const cmsghdr* const header = CMSG_FIRSTHDR(&message); header != nullptr && header->cmsg_type == SCM_RIGHTS) {
        int number;
        std::memcpy(&number, CMSG_DATA(header), sizeof(number));
        fd.reset(number);
      }
      Note(std::string(text.data(), static_cast<std::size_t>(size)), std::move(fd));
    }
  }

 private:
  void Note(const std::string& text, UniqueFd fd) {
    std::map<std::string, std::string> said;
    for (const std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
      const std::size_t equals = line.find('=');
      if (equals != std::string::npos) said[line.substr(0, equals)] = line.substr(equals + 1);
    }
    if (said.contains("READY")) ready_ = true;
    if (said.contains("WATCHDOG")) ++watchdog_pings_;
    if (said.contains("STATUS")) status_ = said["STATUS"];
    if (said.contains("FDSTOREREMOVE")) store_.erase(said["FDNAME"]);
    if (said.contains("FDSTORE")) store_[said["FDNAME"]] = std::move(fd);
  }

  const TempDir home_;
  const UniqueFd notify_ = Bound(home_.Path("notify"), SOCK_DGRAM);
  std::vector<UniqueFd> sockets_;
  std::map<std::string, UniqueFd> store_;
  std::vector<std::pair<std::string, UniqueFd>> others_;
  std::optional<Child> daemon_;
  bool ready_ = false;
  int watchdog_pings_ = 0;
  std::string status_;
};

class Activation : public ::testing::Test {
 protected:
  Finished Ctl(const std::vector<std::string>& arguments) { return Mapctl(manager_.SocketDir(), arguments); }

  ServiceManager manager_;
};

TEST_F(Activation, AClientThatWasThereBeforeTheDaemonIsServed) {
  auto peer = std::async([&] { return std::make_unique<Peer>(manager_.SocketDir()); });
  manager_.Start();
  EXPECT_EQ(peer.get()->Map("", kAnonymous).error, 0);
  EXPECT_THAT(manager_.status(), HasSubstr(manager_.SocketDir()));
  EXPECT_THAT(manager_.Log(), HasSubstr("serves " + manager_.SocketDir()));
}

TEST_F(Activation, ClientsGoOnAfterKillNineAndTheSocketsAreThereMeanwhile) {
  manager_.Start();
  Peer peer(manager_.SocketDir());
  const MapReply own = peer.Map("", kAnonymous);
  peer.Scribble(own);
  for (int round = 1; round <= 3; ++round) {
    manager_.Kill();
    peer.Scribble(own);
    // Asked while there is no daemon: the call waits in the socket for the next one.
    peer.StartMap("", kAnonymous);
    manager_.Start();
    EXPECT_EQ(peer.FinishMap().error, 0);
    EXPECT_EQ(peer.Read(own), Bytes(kSize, static_cast<char>(1 + round)));
  }
}

TEST_F(Activation, ThePoolComesOutOfTheStoreWhenNoClientHasIt) {
  manager_.Start();
  ASSERT_EQ(Ctl({"ram", "put", "/bin/cat", "ram:/kept"}).status, 0);
  manager_.Kill();
  manager_.Listen();
  ASSERT_TRUE(manager_.store().contains("pool"));
  manager_.Start();
  EXPECT_TRUE(Ctl({"ram", "get", "ram:/kept"}).output == testing::Run({"/bin/cat", "/bin/cat"}).output);
  // Killed before it has said anything: what was in the store is in it still.
  manager_.Kill();
  manager_.Listen();
  ASSERT_TRUE(manager_.store().contains("pool"));
  manager_.Start();
  EXPECT_TRUE(Ctl({"ram", "get", "ram:/kept"}).output == testing::Run({"/bin/cat", "/bin/cat"}).output);
}

TEST_F(Activation, WithoutTheStoreWhatNoClientHasIsMissedAndSaid) {
  manager_.Start();
  ASSERT_EQ(Ctl({"ram", "put", "/bin/cat", "ram:/kept"}).status, 0);
  manager_.Kill();
  manager_.Listen();
  manager_.store().clear();
  EXPECT_THROW(manager_.Start(), std::runtime_error);
  EXPECT_THAT(manager_.Log(), HasSubstr("--reset"));
}

TEST_F(Activation, SigtermOfADaemonThatKeepsStateLeavesThePoolToTheNext) {
  manager_.Start();
  Peer peer(manager_.SocketDir());
  const MapReply own = peer.Map("", kAnonymous);
  peer.Scribble(own);
  manager_.Stop(SIGTERM);
  EXPECT_TRUE(manager_.store().contains("pool"));
  peer.StartMap("", kAnonymous);
  manager_.Start();
  EXPECT_EQ(peer.FinishMap().error, 0);
  EXPECT_EQ(peer.Read(own), Bytes(kSize, '\1'));
}

TEST_F(Activation, SigintOfADaemonThatKeepsStateEndsItForGoodAndClientsAreTold) {
  manager_.Start();
  Peer peer(manager_.SocketDir());
  const MapReply own = peer.Map("", kAnonymous);
  peer.Scribble(own);
  manager_.Stop(SIGINT);
  EXPECT_FALSE(manager_.store().contains("pool"));
  EXPECT_NE(access(manager_.StateDir().c_str(), F_OK), 0) << "left behind";
  // At once: a client that waited for another daemon would be served by this one.
  const MapReply refused = peer.Map("", kAnonymous);
  EXPECT_EQ(refused.error, ECONNRESET);
  EXPECT_THAT(refused.sentence, HasSubstr("stopped"));
  EXPECT_EQ(peer.Read(own), Bytes(kSize, '\1')) << "what is attached stays";
}

TEST_F(Activation, AClientOfADaemonThatWasStoppedIsToldSoByTheNextOneToo) {
  manager_.Start();
  Peer peer(manager_.SocketDir());
  ASSERT_EQ(peer.Map("", kAnonymous).error, 0);
  const auto sockets = [&] { return CountDescriptors(peer.pid(), "socket:"); };
  const auto await_end = [&](std::size_t connected) {
    WaitUntil("its gRPC has seen the end of the connection", [&] { return sockets() < connected; });
  };
  // After a restart gRPC connects by itself, and the session must hear of the next end all the same.
  std::size_t connected = sockets();
  manager_.Kill();
  manager_.Start();
  await_end(connected);
  ASSERT_EQ(peer.Map("", kAnonymous).error, 0);
  connected = sockets();
  manager_.Stop(SIGINT);
  // The sockets are the same: its next call comes to a daemon that knows nothing of it.
  manager_.Start();
  await_end(connected);
  const MapReply refused = peer.Map("", kAnonymous);
  EXPECT_EQ(refused.error, ECONNRESET);
  EXPECT_THAT(refused.sentence, HasSubstr("the daemon was stopped"));
}

TEST_F(Activation, StoppedForGoodItTakesItsPoolFromTheStoreAndLeavesTheSockets) {
  manager_.Start({});
  EXPECT_TRUE(manager_.store().contains("pool"));
  struct stat before, after;
  ASSERT_EQ(stat((manager_.SocketDir() + "/handoff.sock").c_str(), &before), 0);
  manager_.Stop(SIGTERM);
  EXPECT_FALSE(manager_.store().contains("pool"));
  ASSERT_EQ(stat((manager_.SocketDir() + "/handoff.sock").c_str(), &after), 0);
  EXPECT_EQ(after.st_mode, before.st_mode);
  EXPECT_EQ(access((manager_.SocketDir() + "/mapbroker.sock").c_str(), F_OK), 0);
}

TEST_F(Activation, WhatItDoesNotKnowIsClosedAndSaid) {
  manager_.PassAlso("surprise", UniqueFd(open("/dev/zero", O_RDONLY | O_CLOEXEC)));
  manager_.PassAlso("more", Bound(manager_.SocketDir() + "/third", SOCK_DGRAM));
  manager_.Start();
  EXPECT_THAT(manager_.Log(), HasSubstr("(surprise)"));
  EXPECT_THAT(manager_.Log(), HasSubstr("(more)"));
  for (int fd = 3; fd < 64; ++fd) {
    std::array<char, 64> target{};
    const std::string link = "/proc/" + std::to_string(manager_.pid()) + "/fd/" + std::to_string(fd);
    if (readlink(link.c_str(), target.data(), target.size() - 1) < 0) continue;
    EXPECT_STRNE(target.data(), "/dev/zero");
  }
  EXPECT_EQ(Peer(manager_.SocketDir()).Map("", kAnonymous).error, 0);
}

TEST_F(Activation, TellsTheWatchdogThatItLives) {
  manager_.Start({}, {{"WATCHDOG_USEC", "200000"}});
  const int before = manager_.watchdog_pings();
  WaitUntil("it has been told thrice", [&] { return manager_.Listen(), manager_.watchdog_pings() >= before + 3; });
}

}  // namespace
}  // namespace mapbroker::testing
