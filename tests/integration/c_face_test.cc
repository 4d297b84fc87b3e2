// The C face: descriptors, addresses and errno as programs for the kernel's calls know them.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/shm.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>

#include "mapbroker/mapbroker.h"
#include "tests/integration/daemon.h"

extern "C" mb_session* connect_from_c(const char* runtime_dir);

namespace mapbroker::testing {
namespace {

class CFace : public ::testing::Test {
 protected:
  struct Disconnect {
    void operator()(mb_session* session) const { mb_disconnect(session); }
  };
  using Session = std::unique_ptr<mb_session, Disconnect>;

  Session Connect() {
    Session session(connect_from_c(daemon_.runtime_dir().c_str()));
    EXPECT_NE(session, nullptr) << mb_strerror();
    return session;
  }

  Daemon daemon_;
  const Session a_ = Connect(), b_ = Connect();
};

// errno of what must fail.
#define EXPECT_ERRNO(call, error)     \
  do {                                \
    EXPECT_EQ((call), -1);            \
    EXPECT_EQ(errno, error) << #call; \
  } while (false)

TEST_F(CFace, TwoProcessesWriteToOneRamFile) {
  const int fd = mb_open(a_.get(), "ram:/ring", O_RDWR | O_CREAT | O_EXCL, 0600);
  ASSERT_GE(fd, 0) << mb_strerror();
  ASSERT_EQ(mb_ftruncate(a_.get(), fd, 8192), 0);
  auto* mine = static_cast<char*>(mb_mmap(a_.get(), nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(mine, MB_MAP_FAILED) << mb_strerror();
  const int other = mb_open(b_.get(), "ram:/ring", O_RDWR, 0);
  auto* theirs = static_cast<char*>(mb_mmap(b_.get(), nullptr, 4096, PROT_READ, MAP_SHARED, other, 4096));
  ASSERT_NE(theirs, MB_MAP_FAILED) << mb_strerror();
  std::strcpy(mine + 4096, "hello");
  EXPECT_STREQ(theirs, "hello");
  char text[6] = {};
  EXPECT_EQ(mb_pread(b_.get(), other, text, 5, 4096), 5);
  EXPECT_STREQ(text, "hello");
  EXPECT_EQ(mb_pwrite(b_.get(), other, "H", 1, 4096), 1);
  EXPECT_STREQ(mine + 4096, "Hello");
  EXPECT_ERRNO(mb_ftruncate(b_.get(), other, 4096), ETXTBSY);
  EXPECT_NE(std::string(mb_strerror()).find("F4"), std::string::npos);
  EXPECT_EQ(mb_munmap(a_.get(), mine, 8192), 0);
  EXPECT_EQ(mb_munmap(b_.get(), theirs, 4096), 0);
  EXPECT_EQ(mb_ftruncate(b_.get(), other, 4096), 0);
  EXPECT_EQ(mb_close(a_.get(), fd), 0);
  EXPECT_ERRNO(mb_close(a_.get(), fd), EBADF);
  EXPECT_EQ(mb_unlink(a_.get(), "ram:/ring"), 0);
}

TEST_F(CFace, FstatSaysWhatTheFileIs) {
  const int fd = mb_open(a_.get(), "ram:/f", O_RDWR | O_CREAT, 0640);
  ASSERT_EQ(mb_pwrite(a_.get(), fd, "abc", 3, 10), 3);
  struct stat stat;
  ASSERT_EQ(mb_fstat(a_.get(), fd, &stat), 0);
  EXPECT_EQ(stat.st_size, 13);
  EXPECT_EQ(stat.st_mode, static_cast<mode_t>(S_IFREG | 0640));
  EXPECT_EQ(stat.st_uid, getuid());
  EXPECT_EQ(stat.st_blocks, 8);
}

TEST_F(CFace, DescriptorsOfRamFilesAndOfTheHostNeverMix) {
  const int fd = mb_open(a_.get(), "ram:/f", O_RDWR | O_CREAT, 0600);
  const int host = open("/dev/null", O_RDONLY | O_CLOEXEC);
  EXPECT_NE(fd, host);
  EXPECT_ERRNO(mb_ftruncate(a_.get(), host, 1), EBADF);
  EXPECT_ERRNO(mb_ftruncate(b_.get(), fd, 1), EBADF);  // another session's
  // Closed behind the library's back, the number is the host's again.
  close(fd);
  const int reused = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(reused, fd);
  EXPECT_ERRNO(mb_ftruncate(a_.get(), fd, 1), EBADF);
  EXPECT_EQ(fcntl(reused, F_GETFD), FD_CLOEXEC);
  close(reused);
  close(host);
}

TEST_F(CFace, PosixSharedMemory) {
  EXPECT_ERRNO(mb_shm_open(a_.get(), "no-slash", O_RDWR | O_CREAT, 0600), EINVAL);
  EXPECT_ERRNO(mb_shm_open(a_.get(), "/a/b", O_RDWR | O_CREAT, 0600), EINVAL);
  EXPECT_ERRNO(mb_shm_open(a_.get(), "/missing", O_RDWR, 0600), ENOENT);
  const int fd = mb_shm_open(a_.get(), "/object", O_RDWR | O_CREAT, 0600);
  ASSERT_EQ(mb_ftruncate(a_.get(), fd, 100'000), 0);
  void* at = mb_mmap(a_.get(), nullptr, 100'000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ASSERT_NE(at, MB_MAP_FAILED) << mb_strerror();
  EXPECT_EQ(mb_shm_unlink(a_.get(), "/object"), 0);
  EXPECT_ERRNO(mb_shm_unlink(a_.get(), "/object"), ENOENT);
  std::memset(at, 1, 100'000);  // F6
}

TEST_F(CFace, SystemVSharedMemory) {
  const int id = mb_shmget(a_.get(), 0x1234, 5000, IPC_CREAT | 0600);
  ASSERT_GE(id, 0) << mb_strerror();
  EXPECT_EQ(mb_shmget(b_.get(), 0x1234, 0, 0), id);
  EXPECT_ERRNO(mb_shmget(b_.get(), 0x1235, 0, 0), ENOENT);
  auto* mine = static_cast<char*>(mb_shmat(a_.get(), id, nullptr, 0));
  auto* theirs = static_cast<char*>(mb_shmat(b_.get(), id, nullptr, SHM_RDONLY));
  ASSERT_NE(mine, MB_MAP_FAILED);
  ASSERT_NE(theirs, MB_MAP_FAILED);
  EXPECT_EQ(mb_shmat(a_.get(), id, mine, 0), MB_MAP_FAILED);
  EXPECT_EQ(errno, EINVAL);
  std::strcpy(mine, "hello");
  EXPECT_STREQ(theirs, "hello");
  shmid_ds segment;
  ASSERT_EQ(mb_shmctl(a_.get(), id, IPC_STAT, &segment), 0);
  EXPECT_EQ(segment.shm_nattch, 2u);
  EXPECT_EQ(segment.shm_segsz, 5000u);
  EXPECT_EQ(segment.shm_cpid, getpid());
  segment.shm_perm.mode = 0400;
  EXPECT_EQ(mb_shmctl(a_.get(), id, IPC_SET, &segment), 0);
  EXPECT_EQ(mb_shmctl(a_.get(), id, IPC_RMID, nullptr), 0);
  EXPECT_EQ(mb_shmdt(a_.get(), mine), 0);
  EXPECT_ERRNO(mb_shmdt(a_.get(), mine), EINVAL);
  ASSERT_EQ(mb_shmctl(b_.get(), id, IPC_STAT, &segment), 0);
  EXPECT_EQ(segment.shm_perm.mode & SHM_DEST, SHM_DEST);
  EXPECT_STREQ(theirs, "hello");
  EXPECT_EQ(mb_shmdt(b_.get(), theirs), 0);
  EXPECT_ERRNO(mb_shmctl(b_.get(), id, IPC_STAT, &segment), EINVAL);
  EXPECT_ERRNO(mb_shmctl(b_.get(), id, 99, &segment), EINVAL);
}

TEST_F(CFace, SmallObjectsOfClassicAreUsable) {
  auto* one =
      static_cast<char*>(mb_mmap(a_.get(), nullptr, 100, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  auto* two =
      static_cast<char*>(mb_mmap(a_.get(), nullptr, 100, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(one, MB_MAP_FAILED) << mb_strerror();
  ASSERT_NE(two, MB_MAP_FAILED) << mb_strerror();
  std::memset(one, 1, 100);
  std::memset(two, 2, 100);
  EXPECT_EQ(one[99], 1);
  EXPECT_ERRNO(mb_munmap(a_.get(), one, 50), EINVAL);
  EXPECT_EQ(mb_munmap(a_.get(), one, 100), 0);
  EXPECT_EQ(mb_munmap(a_.get(), two, 0), 0);
}

TEST_F(CFace, AMappingGrowsWhereItIsAndItsMemoryIsThere) {
  // What a run exceeds the request by stays with it.
  const std::string file = daemon_.files().WriteFile("untrimmed.toml", "[limits]\nnr_trim_pages = 0\n");
  Daemon untrimmed({"--config", file});
  const Session session(connect_from_c(untrimmed.runtime_dir().c_str()));
  constexpr std::size_t kPage = 4096, kMade = 5 * kPage, kRoom = 8 * kPage;
  auto* const memory = static_cast<char*>(
      mb_mmap(session.get(), nullptr, kMade, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MB_MAP_FAILED) << mb_strerror();
  std::fill(memory, memory + kMade, 'm');
  ASSERT_EQ(mb_mremap(session.get(), memory, kMade, kRoom, 0), memory) << mb_strerror();
  EXPECT_TRUE(std::all_of(memory, memory + kMade, [](char byte) { return byte == 'm'; }));
  EXPECT_TRUE(std::all_of(memory + kMade, memory + kRoom, [](char byte) { return byte == 0; }));
  std::fill(memory + kMade, memory + kRoom, 'g');
  ASSERT_EQ(mb_mremap(session.get(), memory, kRoom, kPage, 0), memory) << mb_strerror();
  ASSERT_EQ(mb_mremap(session.get(), memory, kPage, kRoom, 0), memory) << mb_strerror();
  EXPECT_EQ(memory[kRoom - 1], 'g') << "it was the mapping's all the time";
  EXPECT_EQ(mb_mremap(session.get(), memory, kRoom, kRoom + kPage, MREMAP_MAYMOVE), MB_MAP_FAILED);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_EQ(mb_munmap(session.get(), memory, kRoom), 0) << mb_strerror();
}

TEST_F(CFace, ATokenTakesTheSessionUpAndPeekSeesIt) {
  auto* bytes =
      static_cast<char*>(mb_mmap(a_.get(), nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(bytes, MB_MAP_FAILED);
  bytes[0] = 'x';
  const std::string token = mb_token(a_.get());
  mb_session* again = mb_connect_token(daemon_.runtime_dir().c_str(), token.c_str(), 0);
  ASSERT_NE(again, nullptr) << mb_strerror();
  EXPECT_EQ(mb_token(again), token);
  char seen = 0;
  EXPECT_EQ(mb_peek(b_.get(), getpid(), 0, &seen, 1), 1) << mb_strerror();
  EXPECT_EQ(seen, 'x');
  EXPECT_EQ(mb_poke(b_.get(), getpid(), 0, "y", 1), 1);
  EXPECT_EQ(bytes[0], 'y');
  EXPECT_ERRNO(mb_peek(b_.get(), getpid(), 4096, &seen, 1), EIO);
  EXPECT_EQ(mb_set_traced(b_.get(), 0, 1), 0);
  EXPECT_ERRNO(mb_set_traced(b_.get(), 1 << 30, 1), ESRCH);
  // Says farewell for both.
  mb_disconnect(again);
  EXPECT_EQ(mb_connect_token(daemon_.runtime_dir().c_str(), token.c_str(), MB_EXECUTED), nullptr);
  EXPECT_EQ(errno, ESRCH);
}

}  // namespace
}  // namespace mapbroker::testing
