// Plays scenarios and compares what comes out with what was recorded.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "client/mapctl/replay/devices.h"
#include "client/mapctl/replay/scenario.h"
#include "client/mapctl/replay/worker.h"
#include "mapbroker/client.h"

namespace mapbroker::mapctl {

// How a step came out.
struct Outcome {
  enum class Kind { kAgrees, kDiffers, kNotApplicable };
  Kind kind = Kind::kAgrees;
  nlohmann::json got;  // as in `want`; null where nothing was done
};

// Plays one scenario; holds what its steps have made so far.
class Player {
 public:
  // `client` sees when processes have gone; `directory` is for files that a scenario provides; `program` is mapctl. All
  // outlive the player.
  // `fixtures`: a directory with the images that a scenario's devices hold; it need not exist.
  Player(Client& client, const std::string& runtime_dir, const std::string& directory, const std::string& program,
         const std::string& fixtures)
      : client_(client),
        runtime_dir_(runtime_dir),
        directory_(directory),
        program_(program),
        devices_(client, fixtures, std::to_string(getpid())) {}

  // Plays it with fresh processes and files; `report` is called after each step. To be called once.
  void Play(const Scenario& scenario, const std::function<void(const Step&, const Outcome&)>& report);

 private:
  // A run of a named mapping that is still mapped.
  struct Piece {
    std::string name;
    std::string proc;
    std::uint64_t made_at;  // pool address of the mapping when it was made
    std::uint64_t start;
    std::uint64_t length;
  };

  Outcome Do(const Scenario& scenario, const Step& step);
  // Null: not applicable.
  nlohmann::json CarryOut(const Step& step);
  nlohmann::json Provide(const Step& step);
  absl::Status ProvideRamFile(const std::string& name, const std::string& contents, bool scattered);
  nlohmann::json Mmap(const Step& step, Worker& worker);
  nlohmann::json Place(const Step& step, const nlohmann::json& answer, std::uint64_t requested);
  nlohmann::json MmapMany(const Step& step, Worker& worker);
  nlohmann::json Munmap(const Step& step, Worker& worker);
  nlohmann::json Mremap(const Step& step, Worker& worker);
  nlohmann::json Shmget(const Step& step, Worker& worker);
  nlohmann::json OnSegment(const Step& step, Worker& worker);
  nlohmann::json Shmdt(const Step& step, Worker& worker);
  nlohmann::json Load(const Step& step, Worker& worker);
  nlohmann::json Maps(const Step& step, Worker& worker);
  nlohmann::json Clone(const Step& step, Worker& worker);
  nlohmann::json Exec(const Step& step, Worker& worker);
  nlohmann::json End(const Step& step);
  void ForgetPieces(const std::string& proc);
  Worker* WorkerOf(const std::string& proc);
  void WaitUntilGone(pid_t pid);
  void CleanUp();

  // The pool address that `at` and `delta` name; false if the name was never made.
  bool AddressOf(const Step& step, const char* key, const char* delta_key, std::uint64_t& address) const;
  // The real path of a scenario's; empty: this kind of file does not exist here.
  std::string RealPath(const std::string& path);
  std::string ScenarioPath(const std::string& path) const;
  bool HitsAnotherMapping(const Step& step, std::uint64_t address) const;
  bool MentionsUnknown(const nlohmann::json& want) const;
  bool IsComparable(const Scenario& scenario, const Step& step) const;

  Client& client_;
  const std::string runtime_dir_;
  const std::string directory_;
  const std::string program_;
  // Of the ram files that it makes, so that those of others are left alone.
  const std::string ram_prefix_ = "ram:/replay-" + std::to_string(getpid());
  Devices devices_;
  std::map<std::string, Worker> workers_;
  std::vector<std::string> names_;  // of mappings, in order of creation
  std::map<std::string, std::uint64_t> made_at_;
  std::vector<Piece> pieces_;
  std::vector<std::pair<std::string, int>> segments_;  // System V: name and number, in order of creation
  std::set<std::string> overlapping_;                  // mappings that a process made over one of its own
  std::set<std::string> unknown_;                      // names that a step which is not applicable would have made
};

}  // namespace mapbroker::mapctl
