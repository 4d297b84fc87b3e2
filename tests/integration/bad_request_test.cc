// Requests that must be refused, each with its errno, its rule and one sentence, and without any effect.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <ostream>
#include <string>

#include "mapbroker/error.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"

namespace mapbroker::testing {
namespace {

using shm::UniqueFd;

constexpr std::uint64_t kPage = 4096;

struct Refusal {
  int error;
  std::string rule;
  friend bool operator==(const Refusal&, const Refusal&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Refusal& refusal) {
    return out << "errno " << refusal.error << " by rule \"" << refusal.rule << '"';
  }
};

class BadRequest : public ::testing::Test {
 protected:
  explicit BadRequest(std::vector<std::string> options = {}) : daemon_(std::move(options)) {}
  ~BadRequest() override {
    EXPECT_EQ(client_.Statistics()->used, 0u) << "a refused request had an effect";
    daemon_.ExpectServes();
  }

  Refusal Ask(const MapOptions& options) {
    const absl::StatusOr<Mapping> mapping = client_.Map(options);
    EXPECT_EQ(mapping.status().message().find('\n'), absl::string_view::npos);
    EXPECT_EQ(mapping.status().message().empty(), mapping.ok());
    return Refusal{ErrnoOf(mapping.status()), RuleOf(mapping.status())};
  }
  Refusal AskFor(int fd) { return Ask({.length = kPage, .fd = fd}); }

  Daemon daemon_;
  Client client_ = Connect(daemon_);
  const std::string path_ = daemon_.files().MakeFile("file", kPage);
  const UniqueFd file_{open(path_.c_str(), O_RDONLY | O_CLOEXEC)};
};

class BadModernRequest : public BadRequest {
 protected:
  BadModernRequest() : BadRequest({"--profile", "modern"}) {}
};

TEST_F(BadRequest, AnOffsetInsideAPage) {
  EXPECT_EQ(Ask({.length = kPage, .fd = file_.get(), .offset = 1}), (Refusal{EINVAL, "M1"}));
}

TEST_F(BadRequest, ANumberThatIsNoDescriptor) {
  EXPECT_EQ(AskFor(-1), (Refusal{EBADF, "M2"}));
  EXPECT_EQ(AskFor(123'456), (Refusal{EBADF, "M2"}));
}

TEST_F(BadRequest, AnOPathDescriptor) {
  const UniqueFd fd(open(path_.c_str(), O_PATH | O_CLOEXEC));
  EXPECT_EQ(AskFor(fd.get()), (Refusal{EBADF, "M2"}));
}

TEST_F(BadRequest, MapFixed) {
  EXPECT_EQ(Ask({.length = kPage, .flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED}), (Refusal{EINVAL, "M3"}));
}

TEST_F(BadRequest, AnAddressUnderClassic) {
  EXPECT_EQ(Ask({.length = kPage, .flags = MAP_PRIVATE | MAP_ANONYMOUS, .address = kPage}), (Refusal{EINVAL, "M3"}));
}

TEST_F(BadRequest, NeitherOrBothOfSharedAndPrivate) {
  EXPECT_EQ(Ask({.length = kPage, .flags = MAP_ANONYMOUS}), (Refusal{EINVAL, "M4"}));
  EXPECT_EQ(Ask({.length = kPage, .flags = MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS}), (Refusal{EINVAL, "M4"}));
}

TEST_F(BadRequest, LengthZero) { EXPECT_EQ(Ask({.length = 0, .fd = file_.get()}), (Refusal{EINVAL, "M5"})); }

TEST_F(BadRequest, ALengthThatRoundsUpPastTheAddressSpace) {
  EXPECT_EQ(Ask({.length = UINT64_MAX, .fd = file_.get()}), (Refusal{ENOMEM, "M6"}));
}

TEST_F(BadRequest, OffsetPlusLengthThatWraps) {
  EXPECT_EQ(Ask({.length = 2 * kPage, .fd = file_.get(), .offset = UINT64_MAX - kPage + 1}),
            (Refusal{EOVERFLOW, "M7"}));
}

TEST_F(BadRequest, ADirectory) {
  const UniqueFd fd(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  EXPECT_EQ(AskFor(fd.get()), (Refusal{ENODEV, "M8"}));
}

TEST_F(BadRequest, APipe) {
  std::array<int, 2> ends;
  ASSERT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]), writer(ends[1]);
  EXPECT_EQ(AskFor(reader.get()), (Refusal{ENODEV, "M8"}));
}

TEST_F(BadRequest, ACharacterDevice) {
  const UniqueFd fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(AskFor(fd.get()), (Refusal{ENODEV, "M8"}));
}

TEST_F(BadRequest, AFileOfProc) {
  const UniqueFd fd(open("/proc/meminfo", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(AskFor(fd.get()), (Refusal{ENODEV, "M8"}));
}

TEST_F(BadRequest, ASocket) {
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(AskFor(fd.get()), (Refusal{EINVAL, "M9"}));
}

TEST_F(BadRequest, AFileThatIsNotOpenForReading) {
  const UniqueFd fd(open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(AskFor(fd.get()).error, EACCES);
}

TEST_F(BadModernRequest, AFileThatIsNotOpenForReading) {
  const UniqueFd fd(open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(AskFor(fd.get()), (Refusal{EACCES, "M11"}));
}

TEST_F(BadRequest, SharedAndWritableOfAFileOpenForReading) {
  EXPECT_EQ(Ask({.length = kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED, .fd = file_.get()}),
            (Refusal{EACCES, "M12"}));
}

TEST_F(BadRequest, SharedOfAnOrdinaryFile) {
  EXPECT_EQ(Ask({.length = kPage, .flags = MAP_SHARED, .fd = file_.get()}), (Refusal{ENODEV, "M15"}));
}

TEST_F(BadRequest, MoreThanThePool) {
  EXPECT_EQ(Ask({.length = std::uint64_t{1} << 40, .fd = file_.get()}), (Refusal{ENOMEM, "M22"}));
  EXPECT_EQ(Ask({.length = std::uint64_t{65} << 20, .flags = MAP_PRIVATE | MAP_ANONYMOUS}), (Refusal{ENOMEM, "M22"}));
}

TEST_F(BadRequest, MoreThanThePoolIsLoggedInOneLineWithLengthProcessAndCommand) {
  EXPECT_EQ(Ask({.length = std::uint64_t{1} << 40, .flags = MAP_PRIVATE | MAP_ANONYMOUS}), (Refusal{ENOMEM, "M22"}));
  const std::string log = daemon_.Log();
  const std::size_t at = log.find("1099511627776");
  ASSERT_NE(at, std::string::npos) << log;
  const std::size_t begin = log.rfind('\n', at) + 1;
  const std::string line = log.substr(begin, log.find('\n', at) - begin);
  // The command is as long as the kernel keeps a name.
  for (const std::string word : {"session 1 of process ", "running test_integratio: ", "Mmap refused: ENOMEM (M22)"}) {
    EXPECT_NE(line.find(word), std::string::npos) << line;
  }
  EXPECT_NE(line.find(std::to_string(getpid())), std::string::npos) << line;
  EXPECT_EQ(log.find("1099511627776", at + 1), std::string::npos) << log;
}

TEST_F(BadRequest, WritableMemoryForAReadOnlySession) {
  Client reader = Connect(daemon_, {.runtime_dir = "", .read_only = true});
  const absl::StatusOr<Mapping> mapping =
      reader.Map({.length = kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
  EXPECT_EQ(ErrnoOf(mapping.status()), EACCES);
  EXPECT_TRUE(reader.Map({.length = kPage, .fd = file_.get()}).ok());
}

TEST_F(BadRequest, TheMappingsOfAProcessWithoutASession) {
  const absl::Status status = client_.ListMappings(1, [](const MappingRow&) { return true; });
  EXPECT_EQ(ErrnoOf(status), ESRCH);
}

TEST_F(BadRequest, AFileWhoseNameIsGoneIsStillTheFile) {
  ASSERT_EQ(unlink(path_.c_str()), 0);
  EXPECT_EQ(AskFor(file_.get()), (Refusal{0, ""}));
}

TEST_F(BadModernRequest, AnAddressIsIgnored) {
  EXPECT_EQ(Ask({.length = kPage, .flags = MAP_PRIVATE | MAP_ANONYMOUS, .address = kPage}), (Refusal{0, ""}));
}

TEST(Connecting, WithoutADaemonSaysSo) {
  const TempDir dir;
  const absl::StatusOr<Client> client = Client::Connect({.runtime_dir = dir.Path("nothing")});
  EXPECT_EQ(ErrnoOf(client.status()), ENOENT);
}

TEST(Connecting, ToTheSocketsOfADeadDaemonSaysSo) {
  Daemon daemon;
  daemon.Kill();
  const absl::StatusOr<Client> client = Client::Connect({.runtime_dir = daemon.runtime_dir()});
  EXPECT_EQ(ErrnoOf(client.status()), ECONNREFUSED);
}

}  // namespace
}  // namespace mapbroker::testing
