// How a daemon starts, or says in one line why it does not.
#include <grp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "daemon/exit_status.h"
#include "tests/integration/daemon.h"

namespace mapbroker::testing {
namespace {

class Start : public ::testing::Test {
 protected:
  // Expects this status, one line that holds `words`, and nothing left behind.
  void ExpectRefusal(const std::vector<std::string>& options, int status, const std::string& words) {
    const Finished daemon = RunDaemon(options);
    EXPECT_EQ(daemon.status, status) << daemon.errors;
    EXPECT_EQ(std::count(daemon.errors.begin(), daemon.errors.end(), '\n'), 1) << daemon.errors;
    EXPECT_NE(daemon.errors.find(words), std::string::npos) << daemon.errors;
    EXPECT_EQ(daemon.output, "");
  }

  const TempDir dir_;
  const std::string runtime_dir_ = dir_.Path("run");
};

TEST_F(Start, RefusesAPoolSizeThatIsNone) {
  for (const std::string size :
       {"", "many", "12X", "-1", "0x1000", "1.5G", "99999999999999999999", "18446744073709551615K"}) {
    ExpectRefusal({"--runtime-dir", runtime_dir_, "--pool-size=" + size}, kUsage, "size");
    EXPECT_TRUE(dir_.Entries().empty()) << size;
  }
}

TEST_F(Start, RefusesAPoolOfNothing) {
  ExpectRefusal({"--runtime-dir", runtime_dir_, "--pool-size", "0"}, kUsage, "size");
  EXPECT_TRUE(dir_.Entries().empty());
}

TEST_F(Start, RefusesWithoutAPoolSize) {
  ExpectRefusal({"--runtime-dir", runtime_dir_}, kUsage, "--pool-size");
  EXPECT_TRUE(dir_.Entries().empty());
}

TEST_F(Start, RefusesAPoolThatIsNotInPages) {
  ExpectRefusal({"--runtime-dir", runtime_dir_, "--pool-size", "4097"}, kUsage, "4097");
  EXPECT_TRUE(dir_.Entries().empty());
}

TEST_F(Start, RefusesAPoolLargerThanMemoryAndSaysHowMuchThereIs) {
  constexpr char kPetabyte[] = "1125899906842624";
  for (const std::string kind : {"memfd", "shm:/mapbroker-too-large", "file:/dev/shm/mapbroker-too-large"}) {
    ExpectRefusal({"--runtime-dir", runtime_dir_, "--pool-size", "1024T", "--pool", kind}, kNoMemory, kPetabyte);
    EXPECT_TRUE(dir_.Entries().empty()) << kind;
    EXPECT_NE(access("/dev/shm/mapbroker-too-large", F_OK), 0) << kind;
  }
}

TEST_F(Start, RefusesAnUnknownOption) {
  ExpectRefusal({"--runtime-dir", runtime_dir_, "--pool-size", "4M", "--frobnicate"}, kUsage, "--frobnicate");
}

TEST_F(Start, RefusesAnUnknownPoolKindAndProfile) {
  ExpectRefusal({"--runtime-dir", runtime_dir_, "--pool-size", "4M", "--pool", "cloud"}, kUsage, "cloud");
  ExpectRefusal({"--runtime-dir", runtime_dir_, "--pool-size", "4M", "--profile", "ancient"}, kUsage, "ancient");
}

TEST_F(Start, RefusesARuntimeDirectoryThatCannotBeMade) {
  ExpectRefusal({"--runtime-dir", dir_.Path("no/such/parent"), "--pool-size", "4M"}, kFailed, "runtime directory");
}

TEST_F(Start, RefusesARuntimeDirectoryThatIsAFile) {
  const std::string file = dir_.WriteFile("file", "");
  ExpectRefusal({"--runtime-dir", file, "--pool-size", "4M"}, kFailed, "runtime directory");
}

TEST_F(Start, RefusesARuntimeDirectoryThatCannotBeWritten) {
  // Where even the superuser makes no files.
  ExpectRefusal({"--runtime-dir", "/proc/self", "--pool-size", "4M"}, kFailed, "/proc/self");
}

TEST_F(Start, RefusesASocketPathThatIsTooLong) {
  const std::string longest = dir_.Path(std::string(100, 'd'));
  ExpectRefusal({"--runtime-dir", longest, "--pool-size", "4M"}, kUsage, "shorter");
  EXPECT_TRUE(dir_.Entries().empty());
}

TEST_F(Start, RefusesAConfigurationFileWithAMistakeAndNamesItsLine) {
  const std::string config = dir_.WriteFile("config.toml", "profile = \"classic\"\n[pool]\nsise = \"4M\"\n");
  ExpectRefusal({"--runtime-dir", runtime_dir_, "--config", config}, kUsage, "config.toml:3");
}

TEST_F(Start, RefusesTheDirectoryOfALivingDaemonAndLeavesItAlone) {
  Daemon daemon;
  ExpectRefusal({"--runtime-dir", daemon.runtime_dir(), "--pool-size", "4M"}, kAlreadyServed, daemon.runtime_dir());
  daemon.ExpectServes();
}

TEST_F(Start, ReplacesTheSocketsOfADeadDaemon) {
  Daemon dead;
  dead.Kill();
  ASSERT_EQ(access((dead.runtime_dir() + "/handoff.sock").c_str(), F_OK), 0) << "no stale socket to replace";
  Daemon next({}, dead.runtime_dir());
  next.ExpectServes();
  next.Stop();
  EXPECT_TRUE(std::filesystem::is_empty(dead.runtime_dir()));
}

TEST_F(Start, TakesItsSettingsFromAConfigurationFile) {
  const std::string config = dir_.WriteFile("config.toml", "[pool]\nsize = \"8M\"\n[sockets]\nmode = \"0600\"\n");
  Daemon daemon({"--config", config});
  struct stat socket;
  ASSERT_EQ(stat((daemon.runtime_dir() + "/mapbroker.sock").c_str(), &socket), 0);
  EXPECT_EQ(socket.st_mode & 0777, 0600u);
  daemon.ExpectServes();
}

TEST_F(Start, RefusesAGroupOfTheSocketsThatThereIsNot) {
  const std::string config = dir_.WriteFile("config.toml", "[pool]\nsize = \"8M\"\n[sockets]\ngroup = \"no such\"\n");
  ExpectRefusal({"--runtime-dir", runtime_dir_, "--config", config}, kUsage, "config.toml:4: there is no group");
}

TEST_F(Start, RefusesADirectoryModeThatShutsItOut) {
  const std::string config =
      dir_.WriteFile("config.toml", "[pool]\nsize = \"8M\"\n[sockets]\ndirectory_mode = \"0050\"\n");
  ExpectRefusal({"--runtime-dir", runtime_dir_, "--config", config}, kUsage, "config.toml:4: directory mode");
}

TEST_F(Start, GivesSocketsAndDirectoryToTheGroupOfTheConfiguration) {
  // Root may name any group, others one of theirs.
  const group* const other = geteuid() == 0 ? getgrnam("nogroup") : getgrgid(getegid());
  ASSERT_NE(other, nullptr);
  const gid_t gid = other->gr_gid;
  const std::string config = dir_.WriteFile(
      "config.toml", std::string("[sockets]\ngroup = \"") + other->gr_name + "\"\ndirectory_mode = \"0710\"\n");
  Daemon daemon({"--config", config});
  struct stat file;
  for (const std::string name : {"/mapbroker.sock", "/handoff.sock"}) {
    ASSERT_EQ(stat((daemon.runtime_dir() + name).c_str(), &file), 0);
    EXPECT_EQ(file.st_gid, gid) << name;
    EXPECT_EQ(file.st_mode & 0777, 0660u) << name;
  }
  ASSERT_EQ(stat(daemon.runtime_dir().c_str(), &file), 0);
  EXPECT_EQ(file.st_gid, gid);
  EXPECT_EQ(file.st_mode & 0777, 0710u);
}

TEST_F(Start, SocketsAreForOwnerAndGroup) {
  Daemon daemon;
  for (const std::string name : {"/mapbroker.sock", "/handoff.sock"}) {
    struct stat socket;
    ASSERT_EQ(stat((daemon.runtime_dir() + name).c_str(), &socket), 0);
    EXPECT_EQ(socket.st_mode & 0777, 0660u) << name;
  }
}

TEST_F(Start, TellsItsVersionAndItsOptions) {
  EXPECT_EQ(RunDaemon({"--version"}).status, 0);
  const Finished help = RunDaemon({"--help"});
  EXPECT_EQ(help.status, 0);
  EXPECT_NE(help.output.find("Exit status"), std::string::npos);
}

}  // namespace
}  // namespace mapbroker::testing
