// mapctl: what people and programs see.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

constexpr std::size_t kSize = 20'000;

class MapctlTool : public ::testing::Test {
 protected:
  Finished Run(const std::vector<std::string>& arguments) { return Mapctl(daemon_.runtime_dir(), arguments); }
  nlohmann::json RunForJson(std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const Finished finished = Run(arguments);
    EXPECT_EQ(finished.status, 0) << finished.errors;
    return nlohmann::json::parse(finished.output);
  }

  Daemon daemon_;
  const std::string file_ = daemon_.files().MakeFile("file", kSize);
};

TEST_F(MapctlTool, ReadWritesTheFilesBytes) {
  const Finished read = Run({"read", file_});
  EXPECT_EQ(read.status, 0) << read.errors;
  EXPECT_EQ(Bytes(read.output), ReadFile(file_));
}

TEST_F(MapctlTool, ReadOfAPart) {
  const Finished read = Run({"read", file_, "--offset", "4096", "--length", "100"});
  EXPECT_EQ(read.status, 0) << read.errors;
  EXPECT_EQ(Bytes(read.output), ReadFile(file_).Part(4096, 100));
}

TEST_F(MapctlTool, MapTellsWhereAndWhetherSharedOrCopied) {
  const nlohmann::json shared = RunForJson({"map", file_});
  EXPECT_EQ(shared.at("length"), kSize);
  EXPECT_TRUE(shared.contains("address"));
  const Finished copied = Run({"map", file_, "--prot", "rw"});
  EXPECT_EQ(copied.status, 0) << copied.errors;
  EXPECT_FALSE(copied.output.empty());
  EXPECT_EQ(Run({"map", "--anonymous", "--length", "8192", "--prot", "rw"}).status, 0);
}

TEST_F(MapctlTool, HoldKeepsTheMappingUntilItIsToldToStop) {
  for (const int signal : {SIGINT, SIGTERM}) {
    Child holder({MAPCTL, "--runtime-dir", daemon_.runtime_dir(), "map", file_, "--hold"});
    EXPECT_FALSE(holder.ReadLine().empty());
    const nlohmann::json rows = RunForJson({"maps"});
    ASSERT_EQ(rows.size(), 1u);
    EXPECT_EQ(rows[0].at("pids"), nlohmann::json{holder.pid()});
    holder.Signal(signal);
    EXPECT_EQ(holder.Wait(), 0) << holder.Errors();
    WaitUntil("the mapping is gone", [&] { return RunForJson({"maps"}).empty(); });
  }
}

TEST_F(MapctlTool, ReplayComparesOnlyWhatIsWanted) {
  const std::string scenario = daemon_.files().WriteFile("scenario.jsonl", R"({"scenario": "s"}
{"proc": "A", "op": "mmap", "length": 4096, "prot": ["READ"], "flags": ["PRIVATE", "ANONYMOUS"], "as": "m"}
{"proc": "A", "op": "munmap", "at": "m", "length": 4096, "want": {"ok": true}}
{"proc": "A", "op": "munmap", "at": "m", "length": 4096, "want": {"ok": true}}
{"proc": "A", "op": "no-such-call"}
)");
  const Finished replay = Run({"replay", scenario});
  EXPECT_EQ(replay.status, 1) << replay.errors;
  EXPECT_THAT(replay.output, ::testing::HasSubstr("scenario.jsonl:4"));
  EXPECT_THAT(replay.output, ::testing::EndsWith("4 steps, 2 agree, 1 differ, 1 not applicable\n"));
}

TEST_F(MapctlTool, MapsListsRegionsInTheKernelsColumns) {
  Peer peer(daemon_.runtime_dir());
  ASSERT_EQ(peer.Map(file_, {.length = kSize}).error, 0);
  const Finished maps = Run({"maps"});
  EXPECT_EQ(maps.status, 0) << maps.errors;
  EXPECT_THAT(maps.output, ::testing::ContainsRegex("[0-9a-f]+-[0-9a-f]+ r--p 00000000 [0-9a-f]+:[0-9a-f]+ [0-9]+ +/"));
  EXPECT_THAT(maps.output, ::testing::HasSubstr(file_));
}

TEST_F(MapctlTool, MapsAsJsonHasEveryColumn) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map(file_, {.length = kSize});
  for (const auto& arguments :
       {std::vector<std::string>{"maps"}, std::vector<std::string>{"maps", "--pid", std::to_string(peer.pid())}}) {
    const nlohmann::json rows = RunForJson(arguments);
    ASSERT_EQ(rows.size(), 1u);
    EXPECT_EQ(rows[0].at("start"), mapping.address);
    EXPECT_EQ(rows[0].at("perms"), "r--p");
    EXPECT_EQ(rows[0].at("offset"), 0);
    EXPECT_EQ(rows[0].at("path"), file_);
    EXPECT_EQ(rows[0].at("pids"), nlohmann::json{peer.pid()});
    for (const char* column : {"end", "dev", "inode"}) EXPECT_TRUE(rows[0].contains(column)) << column;
  }
}

TEST_F(MapctlTool, AnEmptyListIsAnEmptyArray) { EXPECT_EQ(RunForJson({"maps"}), nlohmann::json::array()); }

TEST_F(MapctlTool, AFileNameWithOddCharactersIsOneLineAndOneObject) {
  const std::string odd = daemon_.files().WriteFile("a \"b\"\\\n\x01\xff", "contents");
  Child holder({MAPCTL, "--runtime-dir", daemon_.runtime_dir(), "map", odd, "--hold"});
  EXPECT_FALSE(holder.ReadLine().empty());
  EXPECT_EQ(RunForJson({"maps"}).size(), 1u);
  const std::string lines = Run({"maps"}).output;
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 1) << lines;
}

TEST_F(MapctlTool, WhoNamesTheHolders) {
  Peer one(daemon_.runtime_dir()), two(daemon_.runtime_dir());
  const MapReply shared = one.Map(file_, {.length = kSize});
  two.Map(file_, {.length = kSize});
  two.Map(file_, {.length = kSize});
  one.Map("", {.length = kSize, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
  const nlohmann::json by_file = RunForJson({"who", file_});
  ASSERT_EQ(by_file.size(), 2u);
  EXPECT_EQ(by_file, RunForJson({"who", absl::StrFormat("%08x", shared.address + 0x1388)}));
  std::map<pid_t, int> mappings;
  for (const auto& holder : by_file) {
    mappings[holder.at("pid")] = holder.at("mappings");
    EXPECT_EQ(holder.at("start"), shared.address);
    EXPECT_EQ(holder.at("command"), "test_peer");
  }
  EXPECT_EQ(mappings, (std::map<pid_t, int>{{one.pid(), 1}, {two.pid(), 2}}));
  EXPECT_EQ(RunForJson({"who", "ram:/nothing"}), nlohmann::json::array());
  const Finished refused = Run({"who", "/no/such/file"});
  EXPECT_EQ(refused.status, 1);
  const std::string lines = Run({"who", file_}).output;
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 2) << lines;
}

TEST_F(MapctlTool, StatusTellsTheCounts) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  ASSERT_EQ(first.Map(file_, {.length = kSize}).error, 0);
  ASSERT_EQ(second.Map(file_, {.length = kSize}).error, 0);
  const nlohmann::json statistics = RunForJson({"status"});
  EXPECT_EQ(statistics.at("pool_size"), 64 << 20);
  EXPECT_EQ(statistics.at("regions"), 1);
  EXPECT_EQ(statistics.at("mappings"), 2);
  EXPECT_EQ(statistics.at("saved_by_sharing"), 20480);
  for (const char* key : {"used", "free", "largest_free_run", "sessions"}) EXPECT_TRUE(statistics.contains(key)) << key;
  EXPECT_EQ(Run({"status"}).status, 0);
}

TEST_F(MapctlTool, ARefusalIsStatusOneAndNamesTheErrno) {
  struct Case {
    std::vector<std::string> arguments;
    std::string errno_name;
  };
  const std::string unreadable_length = "5000000000";
  for (const auto& [arguments, errno_name] :
       {Case{{"map", file_, "--shared"}, "ENODEV"}, Case{{"map", file_, "--offset", "1"}, "EINVAL"},
        Case{{"map", "--anonymous", "--length", unreadable_length}, "ENOMEM"}, Case{{"map", "/"}, "ENODEV"},
        Case{{"map", daemon_.files().Path("missing")}, "ENOENT"},
        Case{{"read", daemon_.files().Path("missing")}, "ENOENT"}, Case{{"maps", "--pid", "1"}, "ESRCH"}}) {
    const Finished finished = Run(arguments);
    EXPECT_EQ(finished.status, 1) << arguments.back();
    EXPECT_EQ(finished.output, "");
    EXPECT_THAT(finished.errors, ::testing::HasSubstr(errno_name)) << arguments.back();
    EXPECT_EQ(std::count(finished.errors.begin(), finished.errors.end(), '\n'), 1) << finished.errors;
  }
}

TEST_F(MapctlTool, AnEmptyFileIsAClearAnswer) {
  const std::string empty = daemon_.files().WriteFile("empty", "");
  const Finished mapped = Run({"map", empty});
  EXPECT_EQ(mapped.status, 1);
  EXPECT_THAT(mapped.errors, ::testing::HasSubstr("the file is empty"));
  EXPECT_EQ(std::count(mapped.errors.begin(), mapped.errors.end(), '\n'), 1) << mapped.errors;
}

TEST_F(MapctlTool, AWrongCommandLineIsStatusTwo) {
  for (const auto& arguments : std::vector<std::vector<std::string>>{{},
                                                                     {"frobnicate"},
                                                                     {"map"},
                                                                     {"map", file_, "--prot", "q"},
                                                                     {"map", file_, "--length", "lots"},
                                                                     {"map", file_, "--private", "--shared"},
                                                                     {"maps", "--pid", "self"},
                                                                     {"status", "--frobnicate"}}) {
    EXPECT_EQ(Run(arguments).status, 2) << (arguments.empty() ? "nothing" : arguments.back());
  }
}

TEST_F(MapctlTool, NoDaemonIsStatusThree) {
  for (const auto& arguments :
       std::vector<std::vector<std::string>>{{"status"}, {"maps"}, {"map", file_}, {"read", file_}}) {
    const Finished finished = Mapctl(daemon_.files().Path("nowhere"), arguments);
    EXPECT_EQ(finished.status, 3) << arguments.front();
    EXPECT_EQ(std::count(finished.errors.begin(), finished.errors.end(), '\n'), 1) << finished.errors;
  }
}

TEST_F(MapctlTool, TheOptionForTheDirectoryComesBeforeTheEnvironment) {
  const Finished stat =
      Mapctl(daemon_.files().Path("nowhere"), {"--runtime-dir", daemon_.runtime_dir(), "status", "--json"});
  EXPECT_EQ(stat.status, 0) << stat.errors;
}

TEST_F(MapctlTool, HelpIsStatusZero) {
  EXPECT_EQ(Run({"--help"}).status, 0);
  for (const char* verb : {"map", "read", "maps", "status"}) EXPECT_EQ(Run({verb, "--help"}).status, 0) << verb;
}

}  // namespace
}  // namespace mapbroker::testing
