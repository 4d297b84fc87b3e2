// Sessions: tokens and passed descriptors.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "daemon/nommu/refusal.h"
#include "daemon/process.h"
#include "daemon/records.h"
#include "daemon/session/session_table.h"

namespace mapbroker::session {
namespace {

using nommu::ErrnoOf;
using shm::UniqueFd;

class SessionTableTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(directory_.data()), nullptr);
    auto ledger = shm::Ledger::Open(directory_ + "/ledger.mdb", kTables);
    ASSERT_TRUE(ledger.ok()) << ledger.status();
    ledger_ = *std::move(ledger);
    sessions_ = std::make_unique<SessionTable>(*ledger_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  SessionTable::Opened Open(nommu::SpaceId space) { return *sessions_->Open({.pid = getpid()}, false, space); }

  std::string directory_ = testing::TempDir() + "sessionsXXXXXX";
  std::unique_ptr<shm::Ledger> ledger_;
  std::unique_ptr<SessionTable> sessions_;
};

TEST_F(SessionTableTest, FindsASessionByItsTokenAndNoOther) {
  const auto one = Open(1), two = Open(2);
  EXPECT_NE(one.session->id(), two.session->id());
  EXPECT_EQ(sessions_->Find(absl::BytesToHexString(one.token)), one.session);
  EXPECT_EQ(sessions_->Find(absl::BytesToHexString(two.token)), two.session);
}

TEST_F(SessionTableTest, AWrongSecretFindsNothing) {
  const auto opened = Open(1);
  for (std::size_t byte = 0; byte < opened.token.size(); ++byte) {
    std::string guess = opened.token;
    guess[byte] = static_cast<char>(guess[byte] ^ 1);
    EXPECT_EQ(sessions_->Find(absl::BytesToHexString(guess)), nullptr) << byte;
  }
  EXPECT_EQ(sessions_->Find(""), nullptr);
  EXPECT_EQ(sessions_->Find(std::string(48, 'z')), nullptr);
  EXPECT_EQ(sessions_->Find(absl::BytesToHexString(opened.token) + "00"), nullptr);
}

TEST_F(SessionTableTest, ATokenIsWorthNothingAfterTheEnd) {
  const auto opened = Open(1);
  sessions_->Close(opened.session->id());
  EXPECT_EQ(sessions_->Find(absl::BytesToHexString(opened.token)), nullptr);
  EXPECT_NE(Open(2).session->id(), opened.session->id());
}

TEST_F(SessionTableTest, ARevokedSessionStaysButItsTokenIsWorthNothingToLaterDaemonsEither) {
  const auto opened = Open(1), other = Open(2);
  ASSERT_TRUE(sessions_->Revoke(opened.session->id(), /*kill=*/false).ok());
  EXPECT_TRUE(opened.session->revoked());
  EXPECT_EQ(sessions_->Find(absl::BytesToHexString(opened.token)), nullptr);
  EXPECT_EQ(sessions_->Find(absl::BytesToHexString(other.token)), other.session);
  EXPECT_EQ(sessions_->FindById(opened.session->id()), opened.session);
  EXPECT_EQ(ErrnoOf(sessions_->Revoke(99, false)), ESRCH);

  SessionTable restored(*ledger_);
  ASSERT_TRUE(restored.Restore([](const auto&, std::uint64_t) { return absl::OkStatus(); }).ok());
  EXPECT_TRUE(restored.FindById(opened.session->id())->revoked());
  EXPECT_EQ(restored.Find(absl::BytesToHexString(opened.token)), nullptr);
  EXPECT_FALSE(restored.FindById(other.session->id())->revoked());
}

TEST_F(SessionTableTest, ARevokedSessionIsNotTakenUpByTheNonceOfItsHello) {
  const Credentials peer{.pid = getpid()};
  const auto revoked = *sessions_->Open(peer, false, 1, "before the restart");
  const auto later = *sessions_->Open(peer, false, 2, "after the restart");
  ASSERT_TRUE(sessions_->Revoke(revoked.session->id(), /*kill=*/false).ok());
  SessionTable restored(*ledger_);
  ASSERT_TRUE(restored.Restore([](const auto&, std::uint64_t) { return absl::OkStatus(); }).ok());
  EXPECT_FALSE(restored.FindByNonce(peer, "before the restart"));
  ASSERT_TRUE(restored.FindByNonce(peer, "after the restart"));
  ASSERT_TRUE(restored.Revoke(later.session->id(), /*kill=*/false).ok());
  EXPECT_FALSE(restored.FindByNonce(peer, "after the restart"));
}

TEST_F(SessionTableTest, ListsByNumberAndCountsThoseThatAreStillGivenBack) {
  const auto one = Open(1), two = Open(2), three = Open(3);
  EXPECT_EQ(sessions_->List(0, 2), (std::vector{one.session, two.session}));
  EXPECT_EQ(sessions_->List(two.session->id(), 2), std::vector{three.session});
  sessions_->Close(two.session->id());
  EXPECT_EQ(sessions_->size(), 3u);
  sessions_->Forget(two.session->id());
  EXPECT_EQ(sessions_->size(), 2u);
}

TEST_F(SessionTableTest, RestoresWhatItRecordedButNotWhatWasForgotten) {
  const auto kept = Open(1), ended = Open(2);
  sessions_->SetTraced(getpid(), true);
  sessions_->Close(ended.session->id());
  sessions_->Forget(ended.session->id());

  SessionTable restored(*ledger_);
  std::vector<std::uint64_t> found;
  ASSERT_TRUE(restored
                  .Restore([&](const std::shared_ptr<Session>& session, std::uint64_t start_time) {
                    found.push_back(session->id());
                    EXPECT_EQ(start_time, StartTimeOf(getpid()));
                    EXPECT_TRUE(session->marked_traced());
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_EQ(found, std::vector<std::uint64_t>{kept.session->id()});
  EXPECT_NE(restored.Find(absl::BytesToHexString(kept.token)), nullptr);
  EXPECT_EQ(restored.Find(absl::BytesToHexString(ended.token)), nullptr);
}

class PassedFileTest : public ::testing::Test {
 protected:
  std::shared_ptr<backing::Backing> Pass(int fd) {
    EXPECT_GE(fd, 0);
    return session_.File(*session_.AddFile(UniqueFd(fd)));
  }
  Session session_{1, {.pid = 1}, false, 1};
};

TEST_F(PassedFileTest, ARegularFileKeepsItsIdentityAndMode) {
  const int fd = memfd_create("passed", MFD_CLOEXEC);
  ASSERT_EQ(write(fd, "hello", 5), 5);
  const UniqueFd read_only(open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY | O_CLOEXEC));
  const auto writable = Pass(fd);
  const auto readable = Pass(dup(read_only.get()));
  EXPECT_EQ(writable->kind, nommu::File::Kind::kMappable);
  EXPECT_EQ(writable->capabilities, nommu::kMapCopy);
  EXPECT_TRUE(writable->readable && writable->writable);
  EXPECT_TRUE(readable->readable && !readable->writable);
  EXPECT_EQ(writable->id, readable->id);
  EXPECT_EQ(*readable->Size(), 5u);
  std::byte bytes[8];
  EXPECT_EQ(*readable->Read(1, bytes), 4u);
  EXPECT_EQ(bytes[0], std::byte{'e'});
}

TEST_F(PassedFileTest, KindsWithoutMmapAreKnown) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd writing(ends[1]);
  EXPECT_EQ(Pass(ends[0])->kind, nommu::File::Kind::kNoMmap);
  EXPECT_EQ(Pass(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC))->kind, nommu::File::Kind::kNoMmap);
  EXPECT_EQ(Pass(open("/dev/null", O_RDWR | O_CLOEXEC))->kind, nommu::File::Kind::kNoMmap);
  EXPECT_EQ(Pass(open("/proc/self/maps", O_RDONLY | O_CLOEXEC))->kind, nommu::File::Kind::kNoMmap);
  EXPECT_EQ(Pass(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))->kind, nommu::File::Kind::kNoCapabilities);
  EXPECT_EQ(Pass(open("/proc/self/exe", O_PATH | O_CLOEXEC))->kind, nommu::File::Kind::kNotOpen);
}

TEST_F(PassedFileTest, ThePathSaysWhenTheFileWasRemoved) {
  char path[] = "/tmp/mapbroker-session-test-XXXXXX";
  const int fd = mkostemp(path, O_CLOEXEC);
  const auto file = Pass(fd);
  EXPECT_EQ(file->Path(), path);
  unlink(path);
  EXPECT_EQ(file->Path(), std::string(path) + " (deleted)");
}

TEST_F(PassedFileTest, AClosedNumberIsForgottenAndItsFileKeptForWhoUsesIt) {
  const int number = *session_.AddFile(UniqueFd(memfd_create("passed", MFD_CLOEXEC)));
  const auto file = session_.File(number);
  EXPECT_TRUE(session_.CloseFile(number).ok());
  EXPECT_EQ(session_.File(number), nullptr);
  EXPECT_EQ(ErrnoOf(session_.CloseFile(number)), EBADF);
  EXPECT_TRUE(file->Size().ok());
}

TEST_F(PassedFileTest, ThereIsALimit) {
  for (std::size_t i = 0; i < kMaxFilesPerSession; ++i) {
    ASSERT_TRUE(session_.AddFile(UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC))).ok());
  }
  EXPECT_EQ(ErrnoOf(session_.AddFile(UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC))).status()), EMFILE);
  EXPECT_TRUE(session_.CloseFile(7).ok());
  EXPECT_TRUE(session_.AddFile(UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC))).ok());
}

}  // namespace
}  // namespace mapbroker::session
