// mapctl replay: plays scenario files and says where the answers differ from what was recorded.
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/mapctl/mapctl.h"
#include "client/mapctl/replay/player.h"
#include "client/mapctl/replay/private_daemon.h"
#include "client/mapctl/replay/scenario.h"
#include "client/mapctl/replay/worker.h"

namespace mapbroker::mapctl {
namespace {

struct ReplayArguments {
  std::vector<std::string> files;
  std::string profile = "modern";
};

// A daemon and our own session with it.
struct Arena {
  PrivateDaemon daemon;
  Client client;
  // What a fresh pool gives first: no mapping of a scenario shall lie at pool address 0, which, where an address is
  // asked for, means none.
  Mapping page_zero;

  static absl::StatusOr<Arena> Make(const std::string& program, const std::string& runtime_dir,
                                    const std::string& profile, bool large) {
    absl::StatusOr<PrivateDaemon> daemon = PrivateDaemon::Start(program, runtime_dir, profile, large);
    if (!daemon.ok()) return daemon.status();
    absl::StatusOr<Client> client = Client::Connect({.runtime_dir = daemon->runtime_dir()});
    if (!client.ok()) return client.status();
    absl::StatusOr<Mapping> page_zero =
        client->Map({.length = client->page_size(), .flags = MAP_PRIVATE | MAP_ANONYMOUS});
    if (!page_zero.ok()) return page_zero.status();
    return Arena{*std::move(daemon), *std::move(client), *std::move(page_zero)};
  }
};

struct Counts {
  int agree = 0, differ = 0, not_applicable = 0;
};

void PrintDifference(const std::string& file, const Scenario& scenario, const Step& step, const nlohmann::json& got,
                     bool as_json) {
  if (as_json) {
    std::cout << nlohmann::json{{"file", file},
                                {"scenario", scenario.name},
                                {"line", step.line},
                                {"step", step.arguments},
                                {"got", got}}
              << '\n';
    return;
  }
  nlohmann::json what = step.arguments;
  what.erase("want");
  std::cout << file << ':' << step.line << ": " << scenario.name << ": " << what << "\n  wanted " << step.want
            << "\n  got    " << got << '\n';
}

absl::Status Replay(const ReplayArguments& arguments, const Context& context, bool& differs) {
  // Everything is read before anything is done.
  std::vector<std::pair<std::string, std::vector<Scenario>>> files;
  for (const std::string& name : arguments.files) {
    std::ifstream file(name);
    if (!file) return absl::FailedPreconditionError(absl::StrCat(name, ": cannot be read"));
    absl::StatusOr<std::vector<Scenario>> scenarios = ParseScenarios(file);
    if (!scenarios.ok()) {
      return absl::FailedPreconditionError(absl::StrCat(name, ": ", std::string(scenarios.status().message())));
    }
    files.emplace_back(name, *std::move(scenarios));
  }

  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  std::map<bool, Arena> arenas;  // by whether they are large; made when first needed
  Counts counts;
  for (const auto& file : files) {
    for (const Scenario& scenario : file.second) {
      auto arena = arenas.find(scenario.large);
      if (arena == arenas.end()) {
        absl::StatusOr<Arena> made = Arena::Make(program, context.runtime_dir, arguments.profile, scenario.large);
        if (!made.ok()) return made.status();
        arena = arenas.emplace(scenario.large, *std::move(made)).first;
      }
      Player player(arena->second.client, arena->second.daemon.runtime_dir(), arena->second.daemon.file_directory(),
                    program, std::filesystem::path(file.first).parent_path() / "fixtures");
      player.Play(scenario, [&](const Step& step, const Outcome& outcome) {
        switch (outcome.kind) {
          case Outcome::Kind::kAgrees:
            ++counts.agree;
            break;
          case Outcome::Kind::kNotApplicable:
            ++counts.not_applicable;
            break;
          case Outcome::Kind::kDiffers:
            ++counts.differ;
            PrintDifference(file.first, scenario, step, outcome.got, context.json);
        }
      });
    }
  }
  differs = counts.differ > 0;
  if (context.json) {
    std::cout << nlohmann::json{{"steps", counts.agree + counts.differ + counts.not_applicable},
                                {"agree", counts.agree},
                                {"differ", counts.differ},
                                {"not_applicable", counts.not_applicable}}
              << '\n';
  } else {
    std::cout << counts.agree + counts.differ + counts.not_applicable << " steps, " << counts.agree << " agree, "
              << counts.differ << " differ, " << counts.not_applicable << " not applicable\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddReplay(CLI::App& program, Context& context) {
  const auto arguments = std::make_shared<ReplayArguments>();
  CLI::App* replay = program.add_subcommand("replay", "play scenario files and show where the answers differ");
  replay->add_option("FILE", arguments->files, "scenario files (JSON Lines)")->required();
  replay->add_option("--profile", arguments->profile, "classic or modern (default), for the daemon that is started")
      ->check(CLI::IsMember({"classic", "modern"}));
  replay->callback([arguments, &context] {
    signal(SIGPIPE, SIG_IGN);  // a process that died answers by its end
    bool differs = false;
    context.exit_status = Report(Replay(*arguments, context, differs));
    if (differs) context.exit_status = kRefused;
  });
  // What the processes of a scenario run; for replay alone.
  const auto kept_in = std::make_shared<int>(-1);
  CLI::App* worker = program.add_subcommand("replay-worker", "")->group("");
  worker->add_option("--kept", *kept_in);
  worker->callback([kept_in, &context] { context.exit_status = WorkerMain(context.runtime_dir, *kept_in); });
}

}  // namespace mapbroker::mapctl
