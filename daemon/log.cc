#include "daemon/log.h"

#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "daemon/nommu/refusal.h"
#include "daemon/process.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace mapbroker {
namespace {

constexpr char kName[] = "mapbrokerd";

// The event that this thread is logging.
thread_local const Event* logged = nullptr;

spdlog::level::level_enum LevelOf(EventKind kind) {
  switch (kind) {
    case EventKind::kMapped:
    case EventKind::kUnmapped:
    case EventKind::kResized:
    case EventKind::kFilled:
      return spdlog::level::debug;
    case EventKind::kRefused:
      return spdlog::level::warn;  // some are
    default:
      return spdlog::level::info;
  }
}

// A pool that is too small is the administrator's business; other refusals are the caller's.
spdlog::level::level_enum LevelOf(const Event& event) {
  if (event.kind == EventKind::kRefused && event.rule != "M22") return spdlog::level::debug;
  return LevelOf(event.kind);
}

// syslog(3)'s.
int PriorityOf(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::critical:
      return 2;
    case spdlog::level::err:
      return 3;
    case spdlog::level::warn:
      return 4;
    case spdlog::level::info:
      return 6;
    default:
      return 7;
  }
}

void AddFields(const Event& event, std::vector<std::string>& fields) {
  const auto add = [&](const char* name, const auto& value) {
    fields.push_back(absl::StrCat("MAPBROKER_", name, "=", value));
  };
  add("EVENT", NameOf(event.kind));
  if (event.session != 0) add("SESSION", event.session);
  if (event.pid != 0) {
    add("PID", event.pid);
    add("UID", event.uid);
  }
  if (!event.peer.empty()) add("PEER", event.peer);
  if (!event.call.empty()) add("CALL", event.call);
  if (event.error != 0) add("ERRNO", event.error);
  if (!event.rule.empty()) add("RULE", event.rule);
  if (event.address) add("ADDRESS", absl::StrFormat("0x%08x", *event.address));
  if (event.length != 0) add("LENGTH", event.length);
  if (!event.path.empty()) add("PATH", event.path);
}

class JournalSink final : public spdlog::sinks::base_sink<std::mutex> {
 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    std::vector<std::string> fields = {
        absl::StrCat("MESSAGE=", absl::string_view(message.payload.data(), message.payload.size())),
        absl::StrCat("PRIORITY=", PriorityOf(message.level)), absl::StrCat("SYSLOG_IDENTIFIER=", kName)};
    if (logged != nullptr) AddFields(*logged, fields);
    std::vector<iovec> parts;
    for (std::string& field : fields) parts.push_back({field.data(), field.size()});
    // Where it cannot be taken there is nobody to tell.
    sd_journal_sendv(parts.data(), static_cast<int>(parts.size()));
  }
  void flush_() override {}
};

// systemd.exec(5): device and inode of what it has connected to journald.
bool IsJournal(int fd) {
  const char* const stream = std::getenv("JOURNAL_STREAM");
  struct stat file;
  return stream != nullptr && fstat(fd, &file) == 0 && absl::StrCat(file.st_dev, ":", file.st_ino) == stream;
}

// "session 3 of process 12 (uid 0)".
std::string SubjectOf(const Event& event) {
  if (!event.peer.empty()) return absl::StrCat(event.peer, " over TCP");
  std::string subject;
  if (event.session != 0) subject = absl::StrCat("session ", event.session);
  if (event.pid != 0) {
    absl::StrAppend(&subject, subject.empty() ? "" : " of ", "process ", event.pid, " (uid ", event.uid, ")");
  }
  return subject.empty() ? "a caller without a session" : subject;
}

// As the kernel writes names into lists.
std::string WithoutControls(std::string_view text) {
  std::string printable;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppendFormat(&printable, "\\%03o", byte);
    } else {
      printable += c;
    }
  }
  return printable;
}

}  // namespace

void StartLog(spdlog::level::level_enum level) {
  spdlog::set_default_logger(IsJournal(STDERR_FILENO)
                                 ? std::make_shared<spdlog::logger>(kName, std::make_shared<JournalSink>())
                                 : spdlog::stderr_logger_mt(kName));
  spdlog::set_level(level);
}

absl::StatusOr<spdlog::level::level_enum> ParseLogLevel(const std::string& name) {
  const auto level = spdlog::level::from_str(name);
  if (level == spdlog::level::off && name != "off") {
    return nommu::Refuse(
        EINVAL, "",
        absl::StrCat("log level \"", name, "\" is none of trace, debug, info, warning, error, critical, off"));
  }
  return level;
}

std::string ExchangeLogLevel(spdlog::level::level_enum level) {
  const auto name = spdlog::level::to_string_view(spdlog::get_level());
  spdlog::set_level(level);
  return std::string(name.data(), name.size());
}

bool IsLogged(EventKind kind) { return spdlog::should_log(LevelOf(kind)); }

void Log(const Event& event) {
  const spdlog::level::level_enum level = LevelOf(event);
  if (!spdlog::should_log(level)) return;
  logged = &event;
  spdlog::log(level, "{}", TextOf(event));
  logged = nullptr;
}

std::string TextOf(const Event& event) {
  std::string text = SubjectOf(event);
  if (event.kind == EventKind::kRefused) {
    if (event.pid != 0 && event.rule == "M22") absl::StrAppend(&text, " running ", CommandOf(event.pid));
    const char* const name = strerrorname_np(event.error);
    absl::StrAppend(&text, ": ", event.call, " refused: ", name == nullptr ? absl::StrCat(event.error) : name);
    if (!event.rule.empty()) absl::StrAppend(&text, " (", event.rule, ")");
  } else {
    std::string what = NameOf(event.kind);
    std::replace(what.begin(), what.end(), '-', ' ');
    absl::StrAppend(&text, ": ", absl::StripPrefix(what, "session "));
  }
  if (event.address) absl::StrAppendFormat(&text, " 0x%08x", *event.address);
  if (event.length != 0) absl::StrAppend(&text, " ", event.length, " bytes");
  if (!event.path.empty()) absl::StrAppend(&text, " ", event.path);
  if (!event.sentence.empty()) absl::StrAppend(&text, ": ", event.sentence);
  return WithoutControls(text);
}

}  // namespace mapbroker
