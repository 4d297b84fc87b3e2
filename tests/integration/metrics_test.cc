// The metrics, as Prometheus scrapes them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <map>
#include <optional>
#include <sstream>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "daemon/exit_status.h"
#include "mapbroker/error.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/http.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

class MetricsOverHttp : public ::testing::Test {
 protected:
  std::vector<std::string> Config(const std::string& metrics) const {
    return {"--config", files_.WriteFile("config.toml", "[metrics]\n" + metrics)};
  }
  // By name and labels, as they are written.
  std::map<std::string, double> Scrape() {
    const std::string answer = HttpGet(port_, "/metrics");
    EXPECT_THAT(answer, HasSubstr("200 OK"));
    std::map<std::string, double> metrics;
    std::istringstream lines(answer.substr(answer.find("\r\n\r\n") + 4));
    for (std::string line; std::getline(lines, line);) {
      const std::size_t space = line.rfind(' ');
      double value;
      if (line.empty() || line[0] == '#') continue;
      EXPECT_TRUE(absl::SimpleAtod(line.substr(space + 1), &value)) << line;
      EXPECT_TRUE(metrics.emplace(line.substr(0, space), value).second) << "twice: " << line;
    }
    return metrics;
  }
  // What the daemon says it listens on, since the port is any that is free.
  static int PortOf(const Daemon& daemon) {
    const std::string log = daemon.Log(), before = "metrics on http://127.0.0.1:";
    const std::size_t at = log.find(before);
    return at == std::string::npos ? 0 : std::stoi(log.substr(at + before.size()));
  }
  void Start() {
    daemon_.emplace(Config("listen = \"127.0.0.1:0\"\n"));
    port_ = PortOf(*daemon_);
    ASSERT_NE(port_, 0) << daemon_->Log();
  }

  const TempDir files_;
  std::optional<Daemon> daemon_;
  int port_ = 0;
};

TEST_F(MetricsOverHttp, CountCallsByMethodAndResultAndTellThePool) {
  Start();
  const std::string file = files_.MakeFile("file", 20'480);
  Peer peer(daemon_->runtime_dir());
  const MapReply mapping = peer.Map(file, {.length = 20'480});
  ASSERT_EQ(mapping.error, 0);
  ASSERT_EQ(peer.Map(file, {.length = 20'480}).error, 0);
  ASSERT_EQ(peer.Map(file, {.length = 0}).error, EINVAL);
  ASSERT_EQ(peer.Unmap(mapping), 0);

  std::map<std::string, double> metrics = Scrape();
  EXPECT_EQ(metrics[R"(mapbroker_calls_total{method="Memory/Mmap",result="OK"})"], 2);
  EXPECT_EQ(metrics[R"(mapbroker_calls_total{method="Memory/Mmap",result="EINVAL"})"], 1);
  EXPECT_EQ(metrics[R"(mapbroker_calls_total{method="Memory/Munmap",result="OK"})"], 1);
  EXPECT_EQ(metrics[R"(mapbroker_call_duration_seconds_count{method="Memory/Mmap"})"], 3);
  EXPECT_EQ(metrics[R"(mapbroker_call_duration_seconds_bucket{method="Memory/Mmap",le="+Inf"})"], 3);
  EXPECT_GT(metrics[R"(mapbroker_call_duration_seconds_sum{method="Memory/Mmap"})"], 0);
  EXPECT_EQ(metrics[R"(mapbroker_events_total{kind="refused"})"], 1);
  EXPECT_EQ(metrics[R"(mapbroker_events_total{kind="mapped"})"], 2);
  EXPECT_EQ(metrics[R"(mapbroker_pool_bytes{state="used"})"], 20'480);
  EXPECT_EQ(metrics[R"(mapbroker_pool_bytes{state="used"})"] + metrics[R"(mapbroker_pool_bytes{state="free"})"] +
                metrics[R"(mapbroker_pool_bytes{state="scrubbing"})"],
            64 << 20);
  EXPECT_EQ(metrics["mapbroker_sessions"], 1);
  EXPECT_EQ(metrics["mapbroker_mappings"], 1);
  EXPECT_EQ(metrics["mapbroker_fills_total"], 1);
  EXPECT_EQ(metrics["mapbroker_ledger_failing"], 0);
  EXPECT_GT(metrics["mapbroker_start_time_seconds"], 1'600'000'000);

  // A latency's buckets hold all that is no longer than their bound.
  double last = 0;
  for (const auto& bound : {"0.000256", "0.016384", "0.524288", "+Inf"}) {
    const double at =
        metrics.at(absl::StrCat(R"(mapbroker_call_duration_seconds_bucket{method="Memory/Mmap",le=")", bound, R"("})"));
    EXPECT_GE(at, last) << bound;
    last = at;
  }
}

TEST_F(MetricsOverHttp, AreNowhereElse) {
  Start();
  EXPECT_THAT(HttpGet(port_, "/"), ::testing::Not(HasSubstr("mapbroker_")));
}

TEST_F(MetricsOverHttp, AreOffUnlessTheyAreAskedFor) {
  const Daemon daemon;
  EXPECT_EQ(PortOf(daemon), 0) << daemon.Log();
}

TEST_F(MetricsOverHttp, AreNotOfferedToOtherMachinesUnlessThatIsSaid) {
  for (const char* address : {"0.0.0.0:0", "192.0.2.1:9464", "[::]:0"}) {
    const TempDir home;
    std::vector<std::string> options = Config(absl::StrCat("listen = \"", address, "\"\n"));
    options.insert(options.end(), {"--runtime-dir", home.Path("run"), "--pool-size", "4M"});
    const Finished refused = RunDaemon(options);
    EXPECT_EQ(refused.status, kUsage);
    EXPECT_THAT(refused.errors, HasSubstr("metrics.anybody"));
  }
  Daemon open(Config("listen = \"0.0.0.0:0\"\nanybody = true\n"));
  EXPECT_THAT(open.Log(), HasSubstr("metrics on http://0.0.0.0:"));
}

TEST_F(MetricsOverHttp, OnAPortThatIsTakenTheDaemonSaysSoInOneLine) {
  Start();
  const TempDir home;
  std::vector<std::string> options = Config(absl::StrCat("listen = \"127.0.0.1:", port_, "\"\n"));
  options.insert(options.end(), {"--runtime-dir", home.Path("run"), "--pool-size", "4M"});
  const Finished refused = RunDaemon(options);
  EXPECT_EQ(refused.status, kFailed);
  EXPECT_EQ(std::count(refused.errors.begin(), refused.errors.end(), '\n'), 1) << refused.errors;
  EXPECT_THAT(refused.errors, HasSubstr("metrics.listen 127.0.0.1:"));
  EXPECT_TRUE(home.Entries().empty());
}

}  // namespace
}  // namespace mapbroker::testing
