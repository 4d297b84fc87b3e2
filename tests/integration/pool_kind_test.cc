// What every kind of pool must do: one body of tests for all.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

constexpr std::uint64_t kSize = 50'000;

struct Kind {
  std::string name;
  std::string option;
  std::string file;  // what it is called in the file system; empty: nothing
};

// Tests run at the same time, so names hold the test's process.
std::string Unique(const std::string& name) { return "mapbroker-test-" + name + "-" + std::to_string(getpid()); }

class PoolKind : public ::testing::TestWithParam<std::string> {
 protected:
  static Kind Of(const std::string& name) {
    const std::string file = "/dev/shm/" + Unique(name);
    if (name == "memfd") return {name, "memfd", ""};
    if (name == "shm") return {name, "shm:/" + Unique(name), file};
    return {name, "file:" + file, file};
  }

  const Kind kind_ = Of(GetParam());
  Daemon daemon_{{"--pool", kind_.option}};
  const std::string file_ = daemon_.files().MakeFile("file", kSize);
};

INSTANTIATE_TEST_SUITE_P(Each, PoolKind, ::testing::Values("memfd", "shm", "file"),
                         [](const auto& info) { return info.param; });

TEST_P(PoolKind, SharesOneCopy) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply a = first.Map(file_, {.length = kSize}), b = second.Map(file_, {.length = kSize});
  EXPECT_EQ(a.address, b.address);
  EXPECT_TRUE(b.existing);
  EXPECT_EQ(second.Read(b), ReadFile(file_));
}

TEST_P(PoolKind, KeepsPrivateCopiesApart) {
  const MapOptions writable{.length = kSize, .prot = PROT_READ | PROT_WRITE};
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply a = first.Map(file_, writable), b = second.Map(file_, writable);
  first.Scribble(a);
  EXPECT_EQ(second.Read(b), ReadFile(file_));
}

TEST_P(PoolKind, PointersAreEqualInProcessesThatAttachTheWholePool) {
  Peer first(daemon_.runtime_dir(), {.runtime_dir = "", .attach = Attach::kWholePool});
  Peer second(daemon_.runtime_dir(), {.runtime_dir = "", .read_only = true, .attach = Attach::kWholePool});
  const MapReply a = first.Map(file_, {.length = kSize}), b = second.Map(file_, {.length = kSize});
  ASSERT_EQ(a.error, 0) << a.sentence;
  ASSERT_EQ(b.error, 0) << b.sentence;
  EXPECT_EQ(a.pointer, b.pointer);
  EXPECT_EQ(first.Read(a), ReadFile(file_));
  EXPECT_EQ(second.Read(b), ReadFile(file_));
}

TEST_P(PoolKind, ReadOnlySessionsReadTheSameMemory) {
  Peer writer(daemon_.runtime_dir()), reader(daemon_.runtime_dir(), {.runtime_dir = "", .read_only = true});
  const MapReply a = writer.Map(file_, {.length = kSize}), b = reader.Map(file_, {.length = kSize});
  EXPECT_EQ(a.address, b.address);
  EXPECT_EQ(reader.Read(b), ReadFile(file_));
}

TEST_P(PoolKind, ItsNameGoesWithTheDaemonAndTheMemoryStaysWithItsUsers) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map(file_, {.length = kSize});
  if (!kind_.file.empty()) {
    EXPECT_EQ(access(kind_.file.c_str(), F_OK), 0);
  }
  daemon_.Stop();
  if (!kind_.file.empty()) {
    EXPECT_NE(access(kind_.file.c_str(), F_OK), 0);
  }
  EXPECT_EQ(peer.Read(mapping), ReadFile(file_));
}

TEST_P(PoolKind, ASecondDaemonDoesNotTakeItsName) {
  if (kind_.file.empty()) {
    // Without a name there is nothing to take: two daemons live side by side.
    Daemon second({"--pool", kind_.option});
    second.ExpectServes();
  } else {
    const TempDir other;
    const Finished second =
        RunDaemon({"--runtime-dir", other.Path("run"), "--pool-size", "4M", "--pool", kind_.option});
    EXPECT_EQ(second.status, 4) << second.errors;
  }
  daemon_.ExpectServes();
}

}  // namespace
}  // namespace mapbroker::testing
