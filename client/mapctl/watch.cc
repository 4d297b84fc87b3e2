// mapctl watch: what happens in the daemon, a line an event.
#include <cstring>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

struct Options {
  WatchOptions events;
  std::string kinds;       // separated by commas
  std::uint64_t most = 0;  // events until it ends; 0: never
};

std::string ErrnoName(int error) {
  const char* const name = strerrorname_np(error);
  return name == nullptr ? std::to_string(error) : name;
}

nlohmann::json Object(const DaemonEvent& event) {
  nlohmann::json object{{"kind", event.kind}, {"time_us", absl::ToUnixMicros(absl::FromChrono(event.time))}};
  if (event.session != 0) object["session"] = event.session;
  if (event.pid != 0) {
    object["pid"] = event.pid;
    object["uid"] = event.uid;
  }
  if (!event.peer.empty()) object["peer"] = event.peer;
  if (!event.call.empty()) object["call"] = event.call;
  if (event.error != 0) object["errno"] = ErrnoName(event.error);
  if (!event.rule.empty()) object["rule"] = event.rule;
  if (!event.sentence.empty()) object["sentence"] = event.sentence;
  if (event.address) object["address"] = *event.address;
  if (event.length != 0) object["length"] = event.length;
  if (!event.path.empty()) object["path"] = event.path;
  return object;
}

// Time, kind, who, what.
std::string Line(const DaemonEvent& event) {
  std::string line = absl::FormatTime("%H:%M:%E3S", absl::FromChrono(event.time), absl::LocalTimeZone());
  absl::StrAppendFormat(&line, " %-16s", event.kind);
  if (!event.peer.empty()) absl::StrAppend(&line, " ", event.peer);
  if (event.session != 0) absl::StrAppend(&line, " session ", event.session);
  if (event.pid != 0) absl::StrAppend(&line, " pid ", event.pid, " uid ", event.uid);
  if (!event.call.empty()) absl::StrAppend(&line, " ", event.call);
  if (event.error != 0) absl::StrAppend(&line, " ", ErrnoName(event.error));
  if (!event.rule.empty()) absl::StrAppend(&line, " (", event.rule, ")");
  if (event.address) absl::StrAppend(&line, " ", Address(*event.address));
  if (event.length != 0) absl::StrAppend(&line, " ", event.length, " bytes");
  if (!event.path.empty()) absl::StrAppend(&line, " ", event.path);
  if (!event.sentence.empty()) absl::StrAppend(&line, ": ", event.sentence);
  return Printable(line);
}

absl::Status Watch(Options& options, const Context& context) {
  for (const absl::string_view kind : absl::StrSplit(options.kinds, ',', absl::SkipEmpty())) {
    options.events.kinds.emplace_back(kind);
  }
  absl::StatusOr<Inspector> inspector = context.Inspect();
  if (!inspector.ok()) return inspector.status();
  std::uint64_t seen = 0;
  bool began = false;
  return inspector->Watch(options.events, [&](std::uint64_t lost, const std::vector<DaemonEvent>& events) {
    if (!began) std::cerr << "mapctl: watching\n";
    began = true;
    if (lost > 0 && context.json) std::cout << nlohmann::json{{"lost", lost}} << '\n';
    if (lost > 0 && !context.json) std::cout << lost << " events lost\n";
    for (const DaemonEvent& event : events) {
      if (context.json) {
        // Paths need not be UTF-8; what is not is replaced.
        std::cout << Object(event).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
      } else {
        std::cout << Line(event) << '\n';
      }
      if (++seen == options.most) return false;
    }
    // Somebody may wait for it at the other end of a pipe.
    return std::cout.flush().good();
  });
}

}  // namespace

void AddWatch(CLI::App& program, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* watch = program.add_subcommand("watch", "print what happens, a line an event, until it is interrupted");
  watch->add_option("--session", options->events.session, "only events of this session")->check(CLI::PositiveNumber);
  watch->add_option("--pid", options->events.pid, "only events of this process")->check(CLI::PositiveNumber);
  watch->add_option("--kind", options->kinds, "only events of these kinds, separated by commas: mapped,refused")
      ->type_name("KINDS");
  watch->add_option("--count", options->most, "end after so many events")->check(CLI::PositiveNumber);
  watch->callback([options, &context] {
    const absl::Status status = Watch(*options, context);
    std::cout.flush();
    context.exit_status = Report(status);
  });
}

}  // namespace mapbroker::mapctl
