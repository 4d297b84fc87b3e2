// The fault storm: clients that map, share, write, unmap and die at random while the daemon is killed at random and
// started again, and a checker that holds what the clients believe against what the daemon lists and what is in memory.
//
// script/storm runs it for long; MAPBROKER_STORM_KILLS, _SECONDS, _CLIENTS and _SEED say how. It prints its seed, and
// at the end what was lost, left over and leaked.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "mapbroker/client.h"
#include "mapbroker/error.h"
#include "shm_backend/failure_point.h"
#include "tests/integration/daemon.h"
#include "tests/integration/temp_dir.h"
#include "tests/system/storm_pattern.h"

namespace mapbroker::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::uint64_t kPool = std::uint64_t{32} << 20;

std::uint64_t Setting(const char* name, std::uint64_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::stoull(value);
}

// What is counted, and what must be 0.
struct Tally {
  std::uint64_t kills = 0, at_points = 0, at_start = 0, deaths = 0, calls = 0, checks = 0;
  std::uint64_t lost = 0, residue = 0, leaked = 0, wrong = 0;
};

class Storm : public ::testing::Test {
 protected:
  Storm() {
    std::filesystem::permissions(home_.Path(""), std::filesystem::perms(0755));
    for (const char* directory : {"run", "files"}) {
      std::filesystem::create_directory(home_.Path(directory));
      std::filesystem::permissions(home_.Path(directory), std::filesystem::perms(0755));
    }
    home_.WriteFile("config", "[sockets]\nmode = \"0666\"\n");
    for (std::uint64_t file = 0; file < kStormFiles; ++file) {
      std::string contents(StormFileSize(file), '\0');
      Paint(std::as_writable_bytes(std::span(contents)), StormFileOwner(file));
      home_.WriteFile("files/" + std::to_string(file), contents);
    }
    for (std::uint64_t client = 0; client < clients_; ++client) {
      std::filesystem::permissions(home_.WriteFile("journal" + std::to_string(client), ""),
                                   std::filesystem::perms(0666));
    }
  }

  std::uint64_t Random(std::uint64_t below) { return random_() % below; }

  // The daemon will die at a failure point, or not.
  void Arm(bool may_die) {
    std::string line;
    if (may_die && Random(2) == 0) {
      line = std::string(shm::kPoints[Random(shm::kPoints.size())].name) + "=kill:" + std::to_string(1 + Random(12)) +
             "\n";
    }
    std::ofstream(home_.Path("points.new")) << line;
    std::filesystem::rename(home_.Path("points.new"), home_.Path("points"));
  }

  void StartDaemon() {
    for (;;) {
      Arm(/*may_die=*/true);
      try {
        daemon_ = std::make_unique<Daemon>(
            std::vector<std::string>{"--pool-size", std::to_string(kPool), "--config", home_.Path("config")},
            home_.Path("run"), home_.Path("points"));
        return;
      } catch (const std::exception& ended) {
        if (std::string(ended.what()).find(": kill\n") == std::string::npos) {
          ++tally_.lost;
          throw;
        }
        ++tally_.kills;
        ++tally_.at_start;
      }
    }
  }

  void StartClient(std::size_t number) {
    processes_[number] = std::make_unique<Child>(std::vector<std::string>{
        STORM_CLIENT, home_.Path("run"), home_.Path("files"), home_.Path("journal" + std::to_string(number)),
        std::to_string(number), std::to_string(clients_), std::to_string(random_())});
  }

  // Those that have ended are replaced; one that has found something wrong is told of.
  void Replace(std::size_t number) {
    const int status = processes_[number]->Wait();
    ++tally_.deaths;
    if (status != 0 && status != 128 + SIGKILL) Blame(number, processes_[number]->Errors());
    StartClient(number);
  }
  void Blame(std::size_t number, const std::string& what) {
    std::uint64_t& count = what.rfind("lost", 0) == 0      ? tally_.lost
                           : what.rfind("residue", 0) == 0 ? tally_.residue
                                                           : tally_.wrong;
    ++count;
    ADD_FAILURE() << "client " << number << ", process " << processes_[number]->pid() << ": " << what;
  }

  // Clients run, some die, until it is time or the daemon has died by itself.
  void Rage(milliseconds time) {
    const auto end = steady_clock::now() + time;
    while (steady_clock::now() < end && daemon_->Running()) {
      std::this_thread::sleep_for(milliseconds(2));
      if (Random(60) == 0) processes_[Random(clients_)]->Signal(SIGKILL);
      for (std::size_t number = 0; number < clients_; ++number) {
        if (!processes_[number]->Running()) Replace(number);
      }
    }
  }

  void KillDaemon() {
    if (daemon_->Running()) {
      daemon_->Kill();
    } else {
      ++tally_.at_points;
      const std::string log = daemon_->Log();
      if (daemon_->AwaitEnd() != 128 + SIGKILL || log.find(": kill\n") == std::string::npos) {
        ++tally_.wrong;
        ADD_FAILURE() << "the daemon has ended by itself: " << log;
      }
    }
    ++tally_.kills;
    daemon_.reset();
  }

  // Nobody calls while it is compared, and the daemon stays.
  void Check() {
    for (;;) {
      Arm(/*may_die=*/false);
      // It passes points one at a time, so that one that answers now is not about to die at any that was armed before.
      const ConnectOptions at_once{.runtime_dir = home_.Path("run"), .reconnect_timeout = milliseconds(0)};
      if (daemon_->Running() && Client::Connect(at_once).ok()) break;
      KillDaemon();
      StartDaemon();
    }
    ++tally_.checks;
    std::vector<std::multimap<std::uint64_t, std::pair<std::uint64_t, std::size_t>>> believed(clients_);
    for (std::size_t number = 0; number < clients_; ++number) {
      if (!processes_[number]->Running()) Replace(number);
      processes_[number]->WriteLine("pause");
    }
    std::vector<std::size_t> paused;
    for (std::size_t number = 0; number < clients_; ++number) {
      for (;;) {
        const std::string line = processes_[number]->ReadLine();
        if (line.empty()) break;  // it has ended
        std::istringstream words(line);
        std::uint64_t address, length, calls;
        std::size_t hash;
        if (line[0] == '.') {
          words.ignore(1);
          words >> calls;
          tally_.calls += calls;
          paused.push_back(number);
          break;
        }
        words >> address >> length >> hash;
        believed[number].emplace(address, std::pair(length, hash));
      }
    }
    for (const std::size_t number : paused) Compare(number, believed[number]);
    CheckNothingIsGivenOutTwice();
    for (const std::size_t number : paused) processes_[number]->WriteLine("go");
  }

  void Compare(std::size_t number,
               const std::multimap<std::uint64_t, std::pair<std::uint64_t, std::size_t>>& believed) {
    const pid_t pid = processes_[number]->pid();
    std::multimap<std::uint64_t, std::uint64_t> beliefs, listed;
    for (const auto& [address, mapping] : believed) beliefs.emplace(address, mapping.first);
    const auto list = [&] {
      listed.clear();
      return observer_->ListMappings(
          pid, [&](const MappingRow& row) { return listed.emplace(row.start, row.end - row.start), true; });
    };
    // What it unmapped with its session goes by and by; what it has must be there at once.
    const bool answered = list().ok();
    std::vector<std::pair<std::uint64_t, std::uint64_t>> missing;
    std::set_difference(beliefs.begin(), beliefs.end(), listed.begin(), listed.end(), std::back_inserter(missing));
    if (!answered || !missing.empty()) {
      tally_.lost += std::max<std::size_t>(1, missing.size());
      ADD_FAILURE() << missing.size() << " mappings of client " << number << " are not listed";
      return;
    }
    if (!WaitUntil("what is listed is believed", [&] { return list().ok() && listed == beliefs; })) {
      tally_.leaked += listed.size() - beliefs.size();
      ADD_FAILURE() << "client " << number << " has " << beliefs.size() << " mappings, " << listed.size()
                    << " are listed";
    }
    for (const auto& [address, mapping] : believed) {
      const std::string_view bytes(reinterpret_cast<const char*>(observer_->pool_base()) + address, mapping.first);
      if (std::hash<std::string_view>()(bytes) == mapping.second) continue;
      ++tally_.lost;
      ADD_FAILURE() << "client " << number << " has other memory at pool address " << address << " than the pool";
    }
  }

  // Regions that have memory of their own do not overlap.
  void CheckNothingIsGivenOutTwice() {
    std::uint64_t end = 0;
    const absl::Status status = observer_->ListMappings(0, [&](const MappingRow& row) {
      if (row.path.rfind("ram:", 0) == 0 || row.path.rfind("/SYSV", 0) == 0) return true;
      if (row.start < end) {
        ++tally_.wrong;
        ADD_FAILURE() << "pool address " << row.start << " is given out twice";
      }
      end = row.end;
      return true;
    });
    EXPECT_TRUE(status.ok()) << status;
  }

  // All clients die, and then there must be nothing.
  void CheckTheEnd() {
    for (auto& process : processes_) process->Signal(SIGKILL);
    for (std::size_t number = 0; number < clients_; ++number) {
      const int status = processes_[number]->Wait();
      if (status == kWrong) Blame(number, processes_[number]->Errors());
    }
    // No clients are left to share with.
    const bool alone = WaitUntil("only the observer's session is left", [&] {
      const absl::StatusOr<PoolStatistics> now = observer_->Statistics();
      return now.ok() && now->sessions == 1 && now->mappings == 0;
    });
    if (!alone) ++tally_.leaked;
    std::vector<std::string> names;
    EXPECT_TRUE(observer_->ListFiles("", [&](const FileStat& file) { return names.push_back(file.name), true; }).ok());
    for (const std::string& name : names) {
      EXPECT_EQ(name.rfind("ram:/storm-", 0), 0u) << name;
      EXPECT_TRUE(observer_->Unlink(name).ok()) << name;
    }
    std::vector<int> segments;
    EXPECT_TRUE(
        observer_->ListShmSegments([&](const ShmSegment& segment) { return segments.push_back(segment.id), true; })
            .ok());
    for (const int id : segments) EXPECT_TRUE(observer_->ShmRemove(id).ok());
    WaitUntil("all pages are free", [&] {
      const absl::StatusOr<PoolStatistics> now = observer_->Statistics();
      return now.ok() && now->largest_free_run == kPool;
    });
    const absl::StatusOr<PoolStatistics> now = observer_->Statistics();
    ASSERT_TRUE(now.ok());
    tally_.leaked += now->used / 4096;
    EXPECT_EQ(now->used, 0u);
    EXPECT_EQ(now->free, kPool);
    EXPECT_EQ(now->regions, 0u);
    const absl::StatusOr<Mapping> all = observer_->Map({.length = kPool, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
    ASSERT_TRUE(all.ok()) << all.status();
    if (!IsZero(all->bytes())) {
      ++tally_.residue;
      ADD_FAILURE() << "a residue in free memory";
    }
  }

  const std::uint64_t kills_ = Setting("MAPBROKER_STORM_KILLS", 15);
  const std::uint64_t seconds_ = Setting("MAPBROKER_STORM_SECONDS", 0);  // 0: as long as the kills take
  const std::uint64_t clients_ = Setting("MAPBROKER_STORM_CLIENTS", 6);
  const std::uint64_t seed_ = Setting("MAPBROKER_STORM_SEED", std::random_device{}());
  std::minstd_rand random_{static_cast<std::minstd_rand::result_type>(seed_)};
  const TempDir home_;
  Tally tally_;
  std::unique_ptr<Daemon> daemon_;
  std::optional<Client> observer_;  // has the pool in its hands, so that there always is one
  std::vector<std::unique_ptr<Child>> processes_;
};

TEST_F(Storm, LosesNothingLeavesNothingOverAndLeaksNothing) {
  const auto begin = steady_clock::now();
  std::cout << "storm: seed " << seed_ << ", " << clients_ << " clients" << std::endl;
  StartDaemon();
  absl::StatusOr<Client> observer;
  for (;;) {
    observer = Client::Connect({.runtime_dir = home_.Path("run"),
                                .attach = Attach::kWholePool,
                                .reconnect_timeout = std::chrono::duration_cast<milliseconds>(kDeadline)});
    if (observer.ok()) break;
    if (daemon_->Running()) continue;
    KillDaemon();
    StartDaemon();
  }
  observer_ = *std::move(observer);
  processes_.resize(clients_);
  for (std::size_t number = 0; number < clients_; ++number) StartClient(number);

  const auto goes_on = [&] {
    if (HasFailure()) return false;
    if (seconds_ > 0) return steady_clock::now() - begin < std::chrono::seconds(seconds_);
    return tally_.kills < kills_;
  };
  for (std::uint64_t round = 0; goes_on(); ++round) {
    Rage(milliseconds(Random(3) == 0 ? Random(1000) : Random(150)));
    KillDaemon();
    // Some die while there is no daemon.
    if (Random(4) == 0) processes_[Random(clients_)]->Signal(SIGKILL);
    StartDaemon();
    if (round % 4 == 3) Check();
  }
  Check();
  if (!HasFailure()) CheckTheEnd();
  observer_.reset();
  std::cout << "storm: " << tally_.kills << " kills (" << tally_.at_points << " at failure points, " << tally_.at_start
            << " during a start), " << tally_.deaths << " deaths of clients, " << tally_.calls << " calls, "
            << tally_.checks << " checks in "
            << std::chrono::duration_cast<std::chrono::seconds>(steady_clock::now() - begin).count() << " s\n"
            << "storm: lost " << tally_.lost << ", residue " << tally_.residue << ", leaked " << tally_.leaked
            << ", wrong " << tally_.wrong << std::endl;
  EXPECT_EQ(tally_.lost + tally_.residue + tally_.leaked + tally_.wrong, 0u);
  if (HasFailure()) std::cout << "storm: again with MAPBROKER_STORM_SEED=" << seed_ << std::endl;
}

}  // namespace
}  // namespace mapbroker::testing
