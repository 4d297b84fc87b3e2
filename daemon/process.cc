#include "daemon/process.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <sstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {
namespace {

// The numbers of a line of /proc/PID/status; none if the process is gone.
std::vector<long> StatusOf(pid_t pid, const std::string& name) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  for (std::string line; std::getline(status, line);) {
    if (line.compare(0, name.size() + 1, name + ":") != 0) continue;
    std::istringstream numbers(line.substr(name.size() + 1));
    return {std::istream_iterator<long>(numbers), {}};
  }
  return {};
}

// Real, effective and saved are `id`.
bool AllAre(const std::vector<long>& ids, long id) {
  return ids.size() >= 3 && std::all_of(ids.begin(), ids.begin() + 3, [&](long one) { return one == id; });
}

}  // namespace

std::string CommandOf(pid_t pid) {
  std::string command;
  std::getline(std::ifstream(absl::StrCat("/proc/", pid, "/comm")), command);
  return command;
}

std::uint64_t StartTimeOf(pid_t pid) {
  std::string stat;
  std::getline(std::ifstream(absl::StrCat("/proc/", pid, "/stat")), stat);
  // The name, in parentheses, may hold anything; the state that follows it is field 3, and the time is field 22.
  const std::size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(stat.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  std::uint64_t time = 0;
  fields >> time;
  return time;
}

bool IsTraced(pid_t pid) {
  const std::vector<long> tracer = StatusOf(pid, "TracerPid");
  return !tracer.empty() && tracer[0] != 0;
}

absl::Status MayTrace(const Credentials& who, pid_t pid) {
  // Of a process that may not be dumped the kernel gives this directory to root.
  struct stat directory;
  if (stat(absl::StrCat("/proc/", pid).c_str(), &directory) != 0) {
    return nommu::Refuse(ESRCH, "X5", absl::StrCat("there is no process ", pid));
  }
  if (who.privileged()) return absl::OkStatus();
  if (directory.st_uid == who.uid && AllAre(StatusOf(pid, "Uid"), who.uid) && AllAre(StatusOf(pid, "Gid"), who.gid)) {
    return absl::OkStatus();
  }
  return nommu::Refuse(
      EPERM, "X5", absl::StrCat("process ", pid, " is another user's or may not be dumped: ask as its user or root"));
}

}  // namespace mapbroker
