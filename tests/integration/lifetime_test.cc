// How long memory belongs to whom: sessions, regions and processes that end in every way.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kSize = 5 * kPage;
// So large that a test can act while it is being read.
constexpr std::uint64_t kLarge = std::uint64_t{512} << 20;

constexpr MapOptions kAnonymous{.length = kSize, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};

class Lifetime : public ::testing::Test {
 protected:
  explicit Lifetime(std::vector<std::string> options = {}) : daemon_(std::move(options)) {}

  PoolStatistics Statistics() { return *observer_.Statistics(); }
  bool NothingUsed() {
    return WaitUntil("nothing is used any more", [&] { return Statistics().used == 0; });
  }

  Daemon daemon_;
  Client observer_ = Connect(daemon_);
  const std::string file_ = daemon_.files().MakeFile("file", kSize);
};

class LifetimeOfAFill : public Lifetime {
 protected:
  LifetimeOfAFill() : Lifetime({"--pool-size", "640M"}) {}

  void UntilFilling() {
    WaitUntil("the file is being read", [&] { return Statistics().filling > 0; });
  }

  const std::string large_ = daemon_.files().MakeSparseFile("large", kLarge);
};

TEST_F(Lifetime, UnmappingFreesTheMemory) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map("", kAnonymous);
  EXPECT_EQ(Statistics().used, kSize);
  EXPECT_EQ(peer.Unmap(mapping), 0);
  EXPECT_EQ(Statistics().regions, 0u);
  EXPECT_TRUE(NothingUsed());
}

TEST_F(Lifetime, ARegionGoesWithItsLastMapping) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply a = first.Map(file_, {.length = kSize});
  const MapReply b = second.Map(file_, {.length = kSize});
  EXPECT_EQ(first.Unmap(a), 0);
  EXPECT_EQ(Statistics().regions, 1u);
  EXPECT_EQ(second.Read(b), ReadFile(file_));
  EXPECT_EQ(second.Unmap(b), 0);
  EXPECT_EQ(Statistics().regions, 0u);
  EXPECT_FALSE(first.Map(file_, {.length = kSize}).existing);
}

TEST_F(Lifetime, AKilledProcessLosesItsMappingsAndNobodyElseDoes) {
  Peer survivor(daemon_.runtime_dir());
  const MapReply kept = survivor.Map(file_, {.length = kSize});
  const MapReply own = survivor.Map("", kAnonymous);
  survivor.Scribble(own);
  {
    Peer victim(daemon_.runtime_dir());
    EXPECT_EQ(victim.Map(file_, {.length = kSize}).address, kept.address);
    ASSERT_EQ(victim.Map("", kAnonymous).error, 0);
    EXPECT_EQ(Statistics().mappings, 4u);
    victim.Kill();
  }
  WaitUntil("the victim's mappings are gone", [&] { return Statistics().mappings == 2; });
  EXPECT_EQ(Statistics().regions, 2u);
  EXPECT_EQ(survivor.Read(kept), ReadFile(file_));
  EXPECT_EQ(survivor.Read(own), Bytes(kSize, '\1'));
}

TEST_F(Lifetime, AProcessThatEndsWithoutUnmappingLeavesNothing) {
  Peer peer(daemon_.runtime_dir());
  ASSERT_EQ(peer.Map(file_, {.length = kSize}).error, 0);
  ASSERT_EQ(peer.Map("", kAnonymous).error, 0);
  EXPECT_EQ(peer.ReturnFromMain(), 0);
  EXPECT_TRUE(NothingUsed());
  WaitUntil("only the test's own session is left", [&] { return Statistics().sessions == 1; });
}

TEST_F(Lifetime, DestroyingClientAndMappingsEndsTheSession) {
  Peer peer(daemon_.runtime_dir());
  ASSERT_EQ(peer.Map(file_, {.length = kSize}).error, 0);
  peer.Disconnect();
  EXPECT_TRUE(NothingUsed());
  WaitUntil("only the test's own session is left", [&] { return Statistics().sessions == 1; });
}

TEST_F(Lifetime, AMappingOutlivesItsClient) {
  std::optional<Client> client(Connect(daemon_));
  absl::StatusOr<Mapping> mapping = client->Map(kAnonymous);
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  client.reset();
  mapping->bytes()[0] = std::byte{7};
  EXPECT_EQ(Statistics().used, kSize);
  EXPECT_TRUE(mapping->Unmap().ok());
  EXPECT_TRUE(NothingUsed());
}

TEST_F(Lifetime, ALiveProcessKeepsItsMemoryWhenItsHandoffConnectionCloses) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map("", kAnonymous);
  peer.Scribble(mapping);
  peer.CloseHandoffConnection();
  // Everything that is free is given to somebody else, who must not be given this.
  daemon_.ExpectServes();
  const PoolStatistics statistics = Statistics();
  absl::StatusOr<Mapping> rest = observer_.Map(
      {.length = statistics.largest_free_run, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
  ASSERT_TRUE(rest.ok()) << rest.status();
  std::fill(rest->bytes().begin(), rest->bytes().end(), std::byte{0xff});
  EXPECT_EQ(peer.Read(mapping), Bytes(kSize, '\1'));

  peer.Kill();
  WaitUntil("its memory is free", [&] { return Statistics().used == rest->length(); });
}

TEST_F(LifetimeOfAFill, AProcessKilledWhileItsFileIsReadLeaksNothing) {
  Peer peer(daemon_.runtime_dir());
  peer.StartMap(large_, {.length = kLarge});
  UntilFilling();
  peer.Kill();
  EXPECT_TRUE(NothingUsed());
  EXPECT_EQ(Statistics().mappings, 0u);
  // The memory can be had again, whole.
  Peer next(daemon_.runtime_dir());
  EXPECT_EQ(next.Map("", {.length = kLarge, .flags = MAP_PRIVATE | MAP_ANONYMOUS}).error, 0);
}

TEST_F(LifetimeOfAFill, ThoseWhoWaitGetTheirMappingWhenTheProcessThatCausedTheReadDies) {
  Peer causer(daemon_.runtime_dir()), first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  causer.StartMap(large_, {.length = kLarge});
  UntilFilling();
  first.StartMap(large_, {.length = kLarge});
  second.StartMap(large_, {.length = kLarge});
  causer.Kill();
  const MapReply a = first.FinishMap(), b = second.FinishMap();
  ASSERT_EQ(a.error, 0) << a.sentence;
  ASSERT_EQ(b.error, 0) << b.sentence;
  EXPECT_EQ(a.address, b.address);
  EXPECT_EQ(first.Unmap(a), 0);
  EXPECT_EQ(second.Unmap(b), 0);
  EXPECT_TRUE(NothingUsed());
}

TEST_F(LifetimeOfAFill, AnotherRangeIsMappedWhileALargeFileIsRead) {
  Peer slow(daemon_.runtime_dir()), quick(daemon_.runtime_dir());
  // Again until the reading was not over too soon to tell.
  WaitUntil("a file is mapped while another is being read", [&] {
    slow.StartMap(large_, {.length = kLarge});
    UntilFilling();
    const MapReply mapping = quick.Map(file_, {.length = kSize});
    const bool still_filling = Statistics().filling > 0;
    EXPECT_EQ(quick.Read(mapping), ReadFile(file_));
    EXPECT_EQ(quick.Unmap(mapping), 0);
    EXPECT_EQ(slow.Unmap(slow.FinishMap()), 0);
    return still_filling;
  });
}

TEST_F(LifetimeOfAFill, AFileThatShrinksWhileItIsReadIsAnErrorAndLeaksNothing) {
  Peer peer(daemon_.runtime_dir());
  // Again until the reading was not over too soon.
  WaitUntil("a file shrinks while it is being read", [&] {
    EXPECT_EQ(truncate(large_.c_str(), kLarge), 0);
    peer.StartMap(large_, {.length = kLarge});
    UntilFilling();
    EXPECT_EQ(truncate(large_.c_str(), kPage), 0);
    const MapReply reply = peer.FinishMap();
    if (reply.error == 0) return peer.Unmap(reply) != 0;
    EXPECT_EQ(reply.error, EIO);
    EXPECT_EQ(reply.rule, "S5");
    return true;
  });
  EXPECT_TRUE(NothingUsed());
}

TEST_F(LifetimeOfAFill, FiftyProcessesThatMapOneFileAtOnceCauseOneRead) {
  constexpr std::size_t kFile = std::size_t{100} << 20;
  const std::string file = daemon_.files().MakeFile("hundred", kFile);
  std::vector<std::unique_ptr<Peer>> peers;
  for (int i = 0; i < 50; ++i) peers.push_back(std::make_unique<Peer>(daemon_.runtime_dir()));
  for (const auto& peer : peers) peer->StartMap(file, {.length = kFile});

  std::vector<MapReply> replies;
  for (const auto& peer : peers) replies.push_back(peer->FinishMap());
  const std::uint64_t hash = std::hash<std::string>()(ReadFile(file));
  for (std::size_t i = 0; i < peers.size(); ++i) {
    ASSERT_EQ(replies[i].error, 0) << replies[i].sentence;
    EXPECT_EQ(replies[i].address, replies[0].address);
    EXPECT_EQ(peers[i]->Hash(replies[i]), hash);
  }
  const PoolStatistics statistics = Statistics();
  EXPECT_EQ(statistics.fills_total, 1u);
  EXPECT_EQ(statistics.used, kFile);
  EXPECT_EQ(statistics.saved_by_sharing, 49 * kFile);
}

}  // namespace
}  // namespace mapbroker::testing
