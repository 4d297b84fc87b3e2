// Ram files and segments between real processes.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/shm.h>

#include <cerrno>
#include <string>
#include <vector>

#include "mapbroker/error.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::ElementsAre;

constexpr std::size_t kSize = 3 << 20;  // more than one call carries

class RamFileBetweenProcesses : public ::testing::Test {
 protected:
  File Make(const std::string& name) {
    auto file = client_.Open(name, O_RDWR | O_CREAT | O_EXCL);
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }
  std::uint64_t Used() { return client_.Statistics()->used; }

  Daemon daemon_;
  Client client_ = Connect(daemon_);
};

TEST_F(RamFileBetweenProcesses, LargeContentsComeBackAsWritten) {
  const File file = Make("ram:/big");
  std::vector<std::byte> contents(kSize);
  for (std::size_t i = 0; i < kSize; ++i) contents[i] = static_cast<std::byte>(i * 7 >> 8);
  ASSERT_TRUE(file.Pwrite(contents, 0).ok());
  Client other = Connect(daemon_);
  const auto reader = other.Open("ram:/big", O_RDONLY);
  ASSERT_TRUE(reader.ok());
  std::vector<std::byte> read(kSize + 10);
  EXPECT_EQ(*reader->Pread(read, 0), kSize);
  read.resize(kSize);
  EXPECT_EQ(read, contents);
  EXPECT_EQ(ErrnoOf(reader->Pwrite(contents, 0)), EBADF);
  EXPECT_EQ(ErrnoOf(reader->Ftruncate(0)), EINVAL);
}

TEST_F(RamFileBetweenProcesses, ASharedMappingIsTheFile) {
  const File file = Make("ram:/f");
  ASSERT_TRUE(file.Ftruncate(8192).ok());
  auto mapping = client_.Map({.length = 8192, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED, .file = &file});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_EQ(mapping->kind(), MappingKind::kDirect);
  mapping->bytes()[5000] = std::byte{'m'};
  std::byte read{};
  ASSERT_EQ(*file.Pread(std::span(&read, 1), 5000), 1u);
  EXPECT_EQ(read, std::byte{'m'});
  std::string perms, path;
  ASSERT_TRUE(client_
                  .ListMappings(0,
                                [&](const MappingRow& row) {
                                  perms = row.perms;
                                  path = row.path;
                                  return true;
                                })
                  .ok());
  EXPECT_EQ(perms, "rw-S");
  EXPECT_EQ(path, "ram:/f");
}

TEST_F(RamFileBetweenProcesses, AFileOutlivesItsMakerAndItsMemoryItsName) {
  {
    Client maker = Connect(daemon_);
    const auto file = maker.Open("ram:/f", O_RDWR | O_CREAT);
    ASSERT_TRUE(file->Ftruncate(8192).ok());
  }
  EXPECT_EQ(client_.Stat("ram:/f")->size, 8192u);
  {
    const auto file = client_.Open("ram:/f", O_RDWR);
    auto mapping = client_.Map({.length = 8192, .prot = PROT_READ, .flags = MAP_SHARED, .file = &*file});
    ASSERT_TRUE(mapping.ok());
    ASSERT_TRUE(client_.Unlink("ram:/f").ok());
    EXPECT_EQ(Used(), 8192u);
  }
  WaitUntil("the memory is free", [&] { return Used() == 0; });
  EXPECT_EQ(ErrnoOf(client_.Stat("ram:/f").status()), ENOENT);
}

TEST_F(RamFileBetweenProcesses, AReadOnlySessionCannotChangeFiles) {
  Make("ram:/f");
  ConnectOptions options;
  options.read_only = true;
  Client reader = Connect(daemon_, options);
  EXPECT_EQ(ErrnoOf(reader.Open("ram:/f", O_RDWR).status()), EACCES);
  EXPECT_TRUE(reader.Open("ram:/f", O_RDONLY).ok());
  EXPECT_EQ(ErrnoOf(reader.Shmat(*client_.Shmget(IPC_PRIVATE, 1, 0600)).status()), EACCES);
}

TEST_F(RamFileBetweenProcesses, ListsFilesAndSegments) {
  std::vector<File> files;
  for (const char* name : {"ram:/b", "ram:/a/1", "ram:/a/2"}) files.push_back(Make(name));
  std::vector<std::string> names;
  const auto take = [&](const FileStat& stat) {
    names.push_back(stat.name);
    return names.size() < 2;
  };
  ASSERT_TRUE(client_.ListFiles("ram:/a/", take).ok());
  EXPECT_THAT(names, ElementsAre("ram:/a/1", "ram:/a/2"));
  const auto id = client_.Shmget(7, 5000, IPC_CREAT | 0600);
  auto attached = client_.Shmat(*id);
  ASSERT_TRUE(attached.ok()) << attached.status();
  std::vector<ShmSegment> segments;
  ASSERT_TRUE(client_
                  .ListShmSegments([&](const ShmSegment& segment) {
                    segments.push_back(segment);
                    return true;
                  })
                  .ok());
  ASSERT_EQ(segments.size(), 1u);
  EXPECT_EQ(segments[0].id, *id);
  EXPECT_EQ(segments[0].nattch, 1u);
  EXPECT_TRUE(attached->Unmap().ok());
  EXPECT_EQ(client_.ShmStat(*id)->nattch, 0u);
}

TEST_F(RamFileBetweenProcesses, MapctlPutsGetsAndRemoves) {
  const auto run = [&](std::vector<std::string> arguments) { return Mapctl(daemon_.runtime_dir(), arguments); };
  const std::string file = daemon_.files().MakeFile("file", 20'000);
  const Finished put = run({"ram", "put", file, "ram:/copy", "--mode", "0644"});
  ASSERT_EQ(put.status, 0) << put.errors;
  EXPECT_EQ(put.output, "ram:/copy  20000 bytes in 1 run\n");
  EXPECT_EQ(Bytes(run({"ram", "get", "/copy"}).output), ReadFile(file));
  EXPECT_THAT(run({"ram", "ls"}).output, ::testing::ContainsRegex("0644 .* 20000 +1 +ram:/copy"));
  EXPECT_EQ(run({"ram", "truncate", "ram:/copy", "4K"}).status, 0);
  EXPECT_EQ(run({"ram", "get", "ram:/copy"}).output.size(), 4096u);
  EXPECT_EQ(run({"ram", "rm", "copy"}).status, 0);
  const Finished missing = run({"ram", "rm", "copy"});
  EXPECT_EQ(missing.status, 1);
  EXPECT_THAT(missing.errors, ::testing::StartsWith("mapctl: ENOENT: there is no ram:/copy"));
  EXPECT_EQ(run({"ram", "put", "/missing", "x"}).status, 1);
  EXPECT_EQ(run({"ram", "put", file, "x", "--mode", "9"}).status, 2);
}

TEST_F(RamFileBetweenProcesses, MapctlMakesAndRemovesSegments) {
  const auto run = [&](std::vector<std::string> arguments) { return Mapctl(daemon_.runtime_dir(), arguments); };
  const Finished made = run({"shm", "create", "8K", "--key", "0x77"});
  ASSERT_EQ(made.status, 0) << made.errors;
  EXPECT_EQ(run({"shm", "create", "8K", "--key", "0x77"}).status, 1);
  EXPECT_THAT(run({"shm", "ls"}).output, ::testing::ContainsRegex("0x00000077  0600 .* 8192 +0"));
  EXPECT_EQ(run({"shm", "rm", made.output.substr(0, made.output.size() - 1)}).status, 0);
  EXPECT_EQ(run({"shm", "rm", "12345"}).status, 1);
}

TEST_F(RamFileBetweenProcesses, MapctlExplainsRulesWithoutADaemon) {
  const auto run = [](std::vector<std::string> arguments) { return Mapctl("/nonexistent", arguments); };
  EXPECT_EQ(run({"explain", "M5"}).output, "M5  length 0; EINVAL\n");
  EXPECT_THAT(run({"explain", "p4"}).output, ::testing::HasSubstr("classic: must name one whole mapping"));
  EXPECT_THAT(run({"errno", "ETXTBSY"}).output, ::testing::HasSubstr("F4  ftruncate"));
  EXPECT_EQ(run({"explain", "Q1"}).status, 1);
  EXPECT_EQ(run({"errno", "EWHAT"}).status, 1);
}

}  // namespace
}  // namespace mapbroker::testing
