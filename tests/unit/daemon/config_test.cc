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
