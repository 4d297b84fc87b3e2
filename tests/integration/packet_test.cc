// What the handoff socket answers to peers that do not keep to the protocol.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "mapbroker/v1/handoff.pb.h"
#include "proto/handoff_packet.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/daemon.h"
#include "tests/integration/raw_socket.h"

namespace mapbroker::testing {
namespace {

using shm::UniqueFd;

class Packet : public ::testing::Test {
 protected:
  ~Packet() override { daemon_.ExpectServes(); }

  UniqueFd Connect() const {
    // A daemon that does not answer fails the test instead of stopping it.
    UniqueFd connection = ConnectTo(daemon_.runtime_dir() + "/" + kHandoffSocketName, SOCK_SEQPACKET, kDeadline);
    EXPECT_TRUE(connection) << strerror(errno);
    return connection;
  }

  static v1::HandoffRequest Hello(unsigned min, unsigned max) {
    v1::HandoffRequest request;
    request.mutable_hello()->set_min_version(min);
    request.mutable_hello()->set_max_version(max);
    return request;
  }

  // The errno that the daemon answers, 0 if the answer is no Error.
  static int Answer(const UniqueFd& connection) {
    v1::HandoffReply reply;
    const HandoffPacket packet = ReceiveHandoffPacket(connection.get(), reply);
    EXPECT_EQ(packet.error, 0);
    if (reply.has_error()) {
      EXPECT_FALSE(reply.error().explanation().empty());
      EXPECT_FALSE(reply.error().errno_name().empty());
      last_explanation_ = reply.error().explanation();
    }
    return reply.error().errno_value();
  }

  static int Ask(const UniqueFd& connection, const v1::HandoffRequest& request, int fd = -1) {
    EXPECT_EQ(SendHandoffPacket(connection.get(), request, fd), 0);
    return Answer(connection);
  }

  // Waits until the daemon has closed the connection.
  static bool Closed(const UniqueFd& connection) {
    v1::HandoffReply reply;
    return ReceiveHandoffPacket(connection.get(), reply).error == ECONNRESET;
  }

  UniqueFd Session() const {
    UniqueFd connection = Connect();
    EXPECT_EQ(Ask(connection, Hello(kMinProtocolVersion, kMaxProtocolVersion)), 0);
    return connection;
  }

  Daemon daemon_;
  inline static std::string last_explanation_;
};

TEST_F(Packet, VersionsThatNobodySpeaksAreRefusedWithTheRangesOfBothSides) {
  for (const auto& [min, max] : {std::pair{900u, 901u}, {0u, 0u}, {2u, 1u}, {UINT32_MAX, UINT32_MAX}}) {
    const UniqueFd connection = Connect();
    EXPECT_EQ(Ask(connection, Hello(min, max)), EPROTONOSUPPORT) << min << " to " << max;
    EXPECT_NE(last_explanation_.find(std::to_string(min)), std::string::npos) << last_explanation_;
    EXPECT_NE(last_explanation_.find(std::to_string(kMaxProtocolVersion)), std::string::npos) << last_explanation_;
  }
}

TEST_F(Packet, TheHighestCommonVersionIsChosen) {
  const UniqueFd connection = Connect();
  ASSERT_EQ(SendHandoffPacket(connection.get(), Hello(0, UINT32_MAX)), 0);
  v1::HandoffReply reply;
  const HandoffPacket packet = ReceiveHandoffPacket(connection.get(), reply);
  ASSERT_TRUE(reply.has_welcome());
  EXPECT_EQ(reply.welcome().version(), kMaxProtocolVersion);
  EXPECT_EQ(reply.welcome().pool_size(), std::uint64_t{64} << 20);
  EXPECT_TRUE(packet.fd) << "no descriptor of the pool";
}

TEST_F(Packet, TokensAreLongAndNeverTheSame) {
  std::vector<std::string> tokens;
  for (int i = 0; i < 10; ++i) {
    const UniqueFd connection = Connect();
    ASSERT_EQ(SendHandoffPacket(connection.get(), Hello(kMinProtocolVersion, kMaxProtocolVersion)), 0);
    v1::HandoffReply reply;
    ReceiveHandoffPacket(connection.get(), reply);
    EXPECT_GE(reply.welcome().token().size(), 16u);
    EXPECT_EQ(std::count(tokens.begin(), tokens.end(), reply.welcome().token()), 0);
    tokens.push_back(reply.welcome().token());
  }
}

TEST_F(Packet, NothingIsAnsweredBeforeHello) {
  v1::HandoffRequest pass, close, goodbye;
  pass.mutable_pass_file();
  close.mutable_close_file();
  goodbye.mutable_goodbye();
  for (const v1::HandoffRequest& request : {pass, close, goodbye}) {
    EXPECT_EQ(Ask(Connect(), request), EPROTO) << request.ShortDebugString();
  }
}

TEST_F(Packet, AConnectionHasOneSession) {
  const UniqueFd session = Session();
  EXPECT_EQ(Ask(session, Hello(kMinProtocolVersion, kMaxProtocolVersion)), EPROTO);
}

TEST_F(Packet, APacketThatIsTooLongEndsTheConnection) {
  for (const std::size_t size : {kMaxHandoffPacket + 1, std::size_t{100'000}}) {
    const UniqueFd connection = Session();
    EXPECT_TRUE(SendBytes(connection, std::string(size, 'x'))) << strerror(errno);
    EXPECT_EQ(Answer(connection), EMSGSIZE);
    EXPECT_TRUE(Closed(connection));
  }
}

TEST_F(Packet, ATruncatedMessageEndsTheConnection) {
  const UniqueFd connection = Connect();
  const std::string whole = Hello(kMinProtocolVersion, kMaxProtocolVersion).SerializeAsString();
  EXPECT_TRUE(SendBytes(connection, whole.substr(0, whole.size() - 1))) << strerror(errno);
  EXPECT_EQ(Answer(connection), EBADMSG);
  EXPECT_TRUE(Closed(connection));
}

TEST_F(Packet, GarbageIsAnErrorAndNothingElse) {
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    const UniqueFd connection = Connect();
    std::string bytes(1 + random() % 200, '\0');
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(random()); });
    EXPECT_TRUE(SendBytes(connection, bytes)) << strerror(errno);
    EXPECT_NE(Answer(connection), 0);
  }
}

TEST_F(Packet, AMessageWithoutARequestIsAnError) {
  const UniqueFd session = Session();
  EXPECT_TRUE(SendBytes(session, "\x7a\x01x"));  // an unknown field
  EXPECT_EQ(Answer(session), EBADMSG);
}

TEST_F(Packet, DescriptorsWhereNoneBelongAreRefusedAndClosed) {
  std::array<int, 2> ends;
  ASSERT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const UniqueFd session = Session();
  const std::string hello = Hello(kMinProtocolVersion, kMaxProtocolVersion).SerializeAsString();
  for (const std::size_t count : {1, 2, 5, 250}) {
    const UniqueFd connection = Connect();
    EXPECT_TRUE(SendBytes(connection, hello, std::vector<int>(count, writer.get()))) << strerror(errno);
    EXPECT_NE(Answer(connection), 0) << count << " descriptors";
  }
  writer.reset();
  // The pipe ends when nobody, the daemon included, has its other end any more.
  pollfd hung_up{.fd = reader.get(), .events = 0, .revents = 0};
  EXPECT_EQ(poll(&hung_up, 1, static_cast<int>(std::chrono::milliseconds(kDeadline).count())), 1);
}

TEST_F(Packet, PassFileWithoutADescriptorIsRefused) {
  const UniqueFd session = Session();
  v1::HandoffRequest pass;
  pass.mutable_pass_file();
  EXPECT_EQ(Ask(session, pass), EBADF);
  EXPECT_EQ(Ask(session, pass, STDIN_FILENO), 0) << "the session does not go on";
}

TEST_F(Packet, ANumberThatWasNeverGivenCannotBeClosed) {
  const UniqueFd session = Session();
  for (const int number : {0, -1, 7, INT32_MAX, INT32_MIN}) {
    v1::HandoffRequest close;
    close.mutable_close_file()->set_fd(number);
    EXPECT_EQ(Ask(session, close), EBADF) << number;
  }
}

TEST_F(Packet, ASessionCannotPassDescriptorsWithoutEnd) {
  const UniqueFd session = Session();
  v1::HandoffRequest pass;
  pass.mutable_pass_file();
  int passed = 0, error = 0;
  while (passed < 100'000 && (error = Ask(session, pass, STDIN_FILENO)) == 0) ++passed;
  EXPECT_EQ(error, EMFILE);
}

TEST_F(Packet, APeerThatTakesNoAnswersLosesItsConnection) {
  const UniqueFd session = Session();
  v1::HandoffRequest close;
  close.mutable_close_file()->set_fd(1);
  fcntl(session.get(), F_SETFL, O_NONBLOCK);
  int error = 0;
  WaitUntil("the connection is closed", [&] {
    while ((error = SendHandoffPacket(session.get(), close)) == 0) {
    }
    return error != EAGAIN;
  });
  EXPECT_TRUE(error == EPIPE || error == ECONNRESET) << strerror(error);
}

TEST_F(Packet, PeersThatSayNothingDelayNobody) {
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 500; ++i) silent.push_back(Connect());
  daemon_.ExpectServes();
}

TEST_F(Packet, APeerThatSaysNothingIsDropped) { EXPECT_TRUE(Closed(Connect())); }

}  // namespace
}  // namespace mapbroker::testing
