// Peers that mean harm: whatever they do, who behaves is served, and served right.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "mapbroker/v1/handoff.pb.h"
#include "proto/handoff_packet.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/daemon.h"
#include "tests/integration/hanging_file.h"
#include "tests/integration/peer.h"
#include "tests/integration/raw_socket.h"

namespace mapbroker::testing {
namespace {

using shm::UniqueFd;

constexpr std::uint64_t kLength = 12'288;
constexpr uid_t kMallory = 20'004;

std::vector<std::string> Attacks() {
  std::vector<std::string> names;
  std::istringstream lines(Run({ATTACKER, "--list"}).output);
  for (std::string name; lines >> name;) names.push_back(name);
  return names;
}

class Attacked {
 protected:
  Attacked() {
    chmod(home_.Path("").c_str(), 0711);
    home_.WriteFile("mapbrokerd.toml", "[sockets]\nmode = \"0666\"\n");
    mkdir(RuntimeDir().c_str(), 0711);
    daemon_.emplace(std::vector<std::string>{"--config", home_.Path("mapbrokerd.toml")}, RuntimeDir());
  }
  std::string RuntimeDir() const { return home_.Path("run"); }

  const TempDir home_;
  std::optional<Daemon> daemon_;
};

class Hostile : public Attacked, public ::testing::TestWithParam<std::string> {};

// No time is asserted: bench/hostile.cc measures it. A call that is not answered fails the test by Child's deadline.
TEST_P(Hostile, PeersDelayNobodyForGoodAndBreakNothing) {
  const std::string file = home_.MakeFile("file", kLength);
  const Bytes contents = ReadFile(file);
  Peer holder(RuntimeDir());
  const MapReply held = holder.Map(file, {.length = kLength});
  ASSERT_EQ(held.error, 0);
  const MapReply own =
      holder.Map("", {.length = kLength, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
  ASSERT_EQ(own.error, 0);
  holder.Scribble(own);
  const std::size_t descriptors = CountDescriptors(daemon_->pid());
  {
    Child attacker({ATTACKER, RuntimeDir(), GetParam(), std::to_string(kMallory)});
    ASSERT_EQ(attacker.ReadLine(), "attacking") << attacker.Errors();
    for (int i = 0; i < 50; ++i) {
      const MapReply shared = holder.Map(file, {.length = kLength});
      ASSERT_EQ(shared.error, 0) << shared.sentence;
      ASSERT_EQ(shared.address, held.address);
      ASSERT_EQ(holder.Unmap(shared), 0);
      const MapReply fresh =
          holder.Map("", {.length = kLength, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
      ASSERT_EQ(fresh.error, 0) << fresh.sentence;
      ASSERT_EQ(holder.Read(fresh), Bytes(kLength, '\0'));
      holder.Scribble(fresh);
      ASSERT_EQ(holder.Unmap(fresh), 0);
    }
    // Who comes new is served as well.
    for (int i = 0; i < 3; ++i) {
      Peer newcomer(RuntimeDir());
      const MapReply mapping = newcomer.Map(file, {.length = kLength});
      ASSERT_EQ(mapping.error, 0) << mapping.sentence;
      ASSERT_EQ(newcomer.Read(mapping), contents);
    }
    EXPECT_TRUE(attacker.Running()) << "the attack has ended by itself: " << attacker.Errors();
  }
  EXPECT_EQ(holder.Read(held), contents);
  EXPECT_EQ(holder.Read(own), Bytes(kLength, '\1'));
  // Nothing of it stays: what was opened for the attacker is closed when he is gone.
  WaitUntil("the attacker's descriptors are closed",
            [&] { return CountDescriptors(daemon_->pid()) <= descriptors + 4; });
  daemon_->ExpectServes();
}

// Files of a server that never answers, of another user than those who behave.
class Hanging : public Attacked, public ::testing::Test {
 protected:
  void SetUp() override {
    if (!file_.mounted()) GTEST_SKIP() << "FUSE cannot be mounted here";
    ASSERT_GE(file_.fd(), 0);
  }
  UniqueFd Connect() const {
    UniqueFd connection = ConnectTo(RuntimeDir() + "/" + kHandoffSocketName, SOCK_SEQPACKET, kDeadline);
    EXPECT_TRUE(connection);
    return connection;
  }
  v1::HandoffReply Ask(const UniqueFd& connection, const v1::HandoffRequest& request, int fd) const {
    EXPECT_EQ(SendHandoffPacket(connection.get(), request, fd), 0);
    v1::HandoffReply reply;
    EXPECT_EQ(ReceiveHandoffPacket(connection.get(), reply).error, 0);
    return reply;
  }

  HangingFile file_{daemon_->pid()};
};

TEST_F(Hanging, FilesKeepNeitherTheDaemonNorOtherUsersFilesFromBeingClosed) {
  v1::HandoffRequest hello, pass, close;
  hello.mutable_hello()->set_max_version(kMaxProtocolVersion);
  hello.mutable_hello()->set_min_version(kMinProtocolVersion);
  pass.mutable_pass_file();
  const UniqueFd session = Connect(), unwanted = Connect();
  // Where none belongs, and where one does; closed, and left when the connection ends.
  EXPECT_TRUE(Ask(unwanted, hello, file_.fd()).has_error());
  ASSERT_TRUE(Ask(session, hello, -1).has_welcome());
  for (int i = 0; i < 20; ++i) {
    const v1::HandoffReply reply = Ask(session, pass, file_.fd());
    ASSERT_TRUE(reply.has_file_passed());
    close.mutable_close_file()->set_fd(reply.file_passed().fd());
    EXPECT_TRUE(Ask(session, close, -1).has_file_closed());
  }
  const std::string path = home_.MakeFile("file", kLength);
  for (int i = 0; i < 5; ++i) {
    Peer peer(RuntimeDir(), {}, kMallory);
    const MapReply mapping = peer.Map(path, {.length = kLength});
    ASSERT_EQ(mapping.error, 0) << mapping.sentence;
    EXPECT_EQ(peer.Read(mapping), ReadFile(path));
    EXPECT_EQ(peer.Unmap(mapping), 0);
    peer.Disconnect();
  }
  WaitUntil("what others passed is closed", [&] { return CountDescriptors(daemon_->pid(), path) == 0; });
  daemon_->ExpectServes();
}

INSTANTIATE_TEST_SUITE_P(Attacks, Hostile, ::testing::ValuesIn(Attacks()), [](const auto& tested) {
  std::string name;
  for (const char letter : tested.param) {
    if (letter != '-') name += letter;
  }
  return name;
});

}  // namespace
}  // namespace mapbroker::testing
