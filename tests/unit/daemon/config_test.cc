// The configuration: sizes, the file, and what is said of mistakes.
#include "daemon/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "daemon/size.h"

namespace mapbroker {
namespace {

TEST(ParseSize, TakesBytesAndPowersOf1024) {
  EXPECT_EQ(*ParseSize("4096"), 4096u);
  EXPECT_EQ(*ParseSize("64K"), 64u << 10);
  EXPECT_EQ(*ParseSize("256M"), 256u << 20);
  EXPECT_EQ(*ParseSize("256MiB"), 256u << 20);
  EXPECT_EQ(*ParseSize("2g"), std::uint64_t{2} << 30);
  EXPECT_EQ(*ParseSize("1TB"), std::uint64_t{1} << 40);
}

TEST(ParseSize, RefusesWhatIsNoSize) {
  for (const char* text : {"", "M", "-1", "1.5G", "10X", "10 M", "0x100", "1MM", "99999999999999999999", "99999999T"}) {
    EXPECT_FALSE(ParseSize(text).ok()) << text;
  }
}

class ConfigFileTest : public ::testing::Test {
 protected:
  ~ConfigFileTest() override { std::filesystem::remove(path_); }
  absl::Status Read(const std::string& text) {
    std::ofstream(path_) << text;
    return ReadConfigFile(path_, config_);
  }
  std::string Complaint(const std::string& text) { return std::string(Read(text).message()); }
  // Tests run side by side: each has its own file.
  const std::string path_ =
      ::testing::TempDir() + "mapbroker-config-" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
  Config config_;
};

TEST_F(ConfigFileTest, SetsEverythingThatCanBeSet) {
  ASSERT_TRUE(Read(R"(
    runtime_dir = "/run/other"
    profile = "modern"
    log_level = "debug"
    [pool]
    kind = "shm:/pool"
    size = "64M"
    huge_pages = true
    [sockets]
    mode = "0600"
    directory_mode = "0711"
    group = "root"
    [limits]
    max_map_count = 10
    nr_trim_pages = 0
    shmmni = 7
    driver_deadline_ms = 250
  )")
                  .ok());
  EXPECT_EQ(config_.runtime_dir, "/run/other");
  EXPECT_EQ(config_.profile, &nommu::kModern);
  EXPECT_EQ(config_.log_level, spdlog::level::debug);
  EXPECT_EQ(config_.pool.kind, shm::SegmentSpec::Kind::kShm);
  EXPECT_EQ(config_.pool.name, "/pool");
  EXPECT_EQ(config_.pool.size, 64u << 20);
  EXPECT_TRUE(config_.pool.huge_pages);
  EXPECT_EQ(config_.socket_mode, 0600u);
  EXPECT_EQ(config_.directory_mode, 0711u);
  EXPECT_EQ(config_.socket_group, gid_t{0});
  EXPECT_EQ(config_.limits.map.max_map_count, 10u);
  EXPECT_EQ(config_.limits.nr_trim_pages, 0u);
  EXPECT_EQ(config_.limits.sysv.shmmni, 7u);
  EXPECT_EQ(config_.limits.driver_deadline_ms, 250u);
}

TEST_F(ConfigFileTest, MistakesAreNamedWithFileAndLine) {
  EXPECT_EQ(Complaint("profile = \"old\"\n"), path_ + ":1: profile \"old\" is neither classic nor modern");
  EXPECT_EQ(Complaint("\n\n[pool]\nsice = \"1M\"\n"), path_ + ":4: unknown key pool.sice");
  EXPECT_EQ(Complaint("[pool]\nsize = 5\n"), path_ + ":2: size must be a string in quotes");
  EXPECT_EQ(Complaint("[sockets]\nmode = \"999\"\n"), path_ + ":2: socket mode \"999\" is not octal, like \"0660\"");
  EXPECT_EQ(Complaint("[limits]\nshmmni = -1\n"), path_ + ":2: limits.shmmni is a whole number, 0 or more");
  EXPECT_EQ(Complaint("[limits]\nshmmni = \"1\"\n"), path_ + ":2: limits.shmmni is a whole number, 0 or more");
  EXPECT_EQ(Complaint("[limits]\ndriver_deadline_ms = 3600001\n"),
            path_ + ":2: limits.driver_deadline_ms is at most 3600000");
  EXPECT_EQ(Complaint("[limits]\nhands = 2\n"), path_ + ":2: unknown key limits.hands");
  EXPECT_EQ(Complaint("x = \n").substr(0, path_.size() + 2), path_ + ":1");
}

TEST_F(ConfigFileTest, LimitsOfUsersAreForAllAndForThoseWhoAreNamed) {
  ASSERT_TRUE(Read(R"(
    [limits]
    bytes = "1G"
    mappings = 100
    calls = 0
    [[limits.user]]
    user = "root"
    mappings = 5
    [[limits.user]]
    user = 1234
    bytes = 4096
  )")
                  .ok());
  const UserLimits& users = config_.limits.users;
  EXPECT_EQ(users.For(1000, Resource::kBytes), std::uint64_t{1} << 30);
  EXPECT_EQ(users.For(1000, Resource::kMappings), 100u);
  EXPECT_EQ(users.For(1000, Resource::kCalls), 0u);
  EXPECT_EQ(users.For(1234, Resource::kBytes), 4096u);
  EXPECT_EQ(users.For(1234, Resource::kMappings), 100u);
  EXPECT_EQ(users.For(0, Resource::kBytes), 0u);
  EXPECT_EQ(users.For(0, Resource::kMappings), 5u);
}

TEST_F(ConfigFileTest, AccessTakesNamesAndNumbers) {
  ASSERT_TRUE(Read(R"(
    [access]
    allow_users = ["root", 1000]
    allow_groups = ["root"]
    deny_users = [7]
    read_only_groups = [50, 51]
  )")
                  .ok());
  EXPECT_EQ(config_.access.allow.users, (std::set<uid_t>{0, 1000}));
  EXPECT_EQ(config_.access.allow.groups, (std::set<gid_t>{0}));
  EXPECT_EQ(config_.access.deny.users, (std::set<uid_t>{7}));
  EXPECT_EQ(config_.access.read_only.groups, (std::set<gid_t>{50, 51}));
}

TEST_F(ConfigFileTest, MistakesInLimitsAndAccessAreNamedWithFileAndLine) {
  EXPECT_EQ(Complaint("[limits]\nsessions = \"many\"\n"),
            path_ + ":2: limits.sessions is a whole number, 0 for no limit; bytes also a size like \"1G\"");
  EXPECT_EQ(Complaint("[limits]\nbytes = \"lots\"\n").substr(0, path_.size() + 16), path_ + ":2: limits.bytes");
  EXPECT_EQ(Complaint("[limits]\nbytes = -1\n").substr(0, path_.size() + 16), path_ + ":2: limits.bytes");
  EXPECT_EQ(Complaint("[[limits.user]]\nuser = 5\n[[limits.user]]\nbytes = 1\n"),
            path_ + ":3: [[limits.user]] needs the key user, a name or a number");
  EXPECT_EQ(Complaint("[[limits.user]]\nuser = \"nobody at all\"\n"),
            path_ + ":2: there is no user \"nobody at all\": make it or name another");
  EXPECT_EQ(Complaint("[[limits.user]]\nuser = 5\nhands = 1\n"), path_ + ":3: a user has no limit hands");
  EXPECT_EQ(Complaint("[limits]\nuser = 5\n"), path_ + ":2: write [[limits.user]], since there may be several");
  EXPECT_EQ(Complaint("[access]\nallow_users = \"root\"\n"),
            path_ + ":2: access.allow_users is a list of names and numbers in brackets");
  EXPECT_EQ(Complaint("[access]\nallow_users = [-1]\n"), path_ + ":2: a user is a name in quotes or a number");
  EXPECT_EQ(Complaint("[access]\nallow_groups = [\"no such group\"]\n"),
            path_ + ":2: there is no group \"no such group\": make it or name another");
  EXPECT_EQ(Complaint("[access]\nallow = []\n"), path_ + ":2: unknown key access.allow");
}

TEST_F(ConfigFileTest, ListenersAreOffUnlessTheyAreGivenAndThenWhole) {
  ASSERT_TRUE(Read("[tcp]\ncertificate = \"/c\"\n[metrics]\nanybody = true\n").ok());
  EXPECT_FALSE(config_.tcp.listen.has_value());
  EXPECT_FALSE(config_.metrics.listen.has_value());
  ASSERT_TRUE(Read(R"(
    [metrics]
    listen = "[::1]:9464"
    [tcp]
    listen = "192.0.2.1:1"
    certificate = "/c"
    key = "/k"
    client_ca = "/a"
    administrators = ["alice", "DNS name"]
  )")
                  .ok());
  EXPECT_EQ(config_.metrics.listen->ToString(), "[::1]:9464");
  EXPECT_TRUE(config_.metrics.listen->loopback);
  EXPECT_EQ(config_.tcp.listen->ToString(), "192.0.2.1:1");
  EXPECT_FALSE(config_.tcp.listen->loopback);
  EXPECT_EQ(config_.tcp.key, "/k");
  EXPECT_EQ(config_.tcp.roles.administrators, (std::vector<std::string>{"alice", "DNS name"}));
  config_ = Config();
  EXPECT_EQ(Complaint("[tcp]\nlisten = \"127.0.0.1:1\"\ncertificate = \"/c\"\n"),
            path_ + ": tcp.listen needs tcp.key: name a file in PEM, or leave tcp.listen out");
  for (const char* address : {"", ":1", "localhost:1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
                              "::1:1", "[::1]", "[127.0.0.1]:1", "127.0.0.1:1x"}) {
    EXPECT_NE(Complaint("[metrics]\nlisten = \"" + std::string(address) + "\"\n").find("is no address and port"),
              std::string::npos)
        << address;
  }
}

TEST_F(ConfigFileTest, AMistakeChangesNothing) {
  EXPECT_FALSE(Read("runtime_dir = \"/elsewhere\"\n[pool]\nsize = \"zero\"\n").ok());
  EXPECT_EQ(config_.runtime_dir, Config().runtime_dir);
}

TEST_F(ConfigFileTest, AMissingFileIsAnErrorThatNamesIt) {
  const absl::Status status = ReadConfigFile("/nonexistent/mapbroker.toml", config_);
  EXPECT_FALSE(status.ok());
  EXPECT_NE(std::string(status.message()).find("/nonexistent/mapbroker.toml"), std::string::npos);
}

}  // namespace
}  // namespace mapbroker
