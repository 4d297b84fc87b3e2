#include "client/mapctl/replay/player.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <span>
#include <thread>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "mapbroker/error.h"

namespace mapbroker::mapctl {
namespace {

using nlohmann::json;

constexpr std::uint64_t kPage = 4096;

// Where a scenario's tmpfs: is among the ram files.
constexpr char kTmpfs[] = "/tmpfs";

// Operations that a process carries out as they stand, and those that need its names resolved first.
const std::set<std::string> kPlain{"open",
                                   "close",
                                   "ftruncate",
                                   "size",
                                   "unlink",
                                   "set_append_only",
                                   "write_file",
                                   "read_file",
                                   "mprotect",
                                   "msync",
                                   "mlock",
                                   "munlock",
                                   "mlockall",
                                   "munlockall",
                                   "mincore",
                                   "madvise",
                                   "remap_file_pages",
                                   "fork",
                                   "vfork_exec",
                                   "exec_file",
                                   "ptrace_me",
                                   "drive",
                                   "undrive",
                                   "driver_calls"};

// Contents as scenarios write them: one byte value, a few bytes, or runs of bytes.
json Contents(const std::string& hex, const json& want) {
  json contents{{"ok", true}};
  const std::string bytes = absl::HexStringToBytes(hex);
  const auto hex_of = [](char byte) { return absl::BytesToHexString({&byte, 1}); };
  if (want.contains("bytes_hex")) {
    contents["bytes_hex"] = hex;
  } else if (want.contains("runs")) {
    json runs = json::array();
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t end = std::min(bytes.find_first_not_of(bytes[at], at), bytes.size());
      runs.push_back({{"byte", hex_of(bytes[at])}, {"count", end - at}});
      at = end;
    }
    contents["runs"] = runs;
  } else if (!bytes.empty() && bytes.find_first_not_of(bytes[0]) == std::string::npos) {
    contents["all"] = hex_of(bytes[0]);
  } else {
    contents["bytes_hex"] = hex.substr(0, 128);
  }
  return contents;
}

std::string PatternOf(const json& content) {
  const std::uint64_t count = NumberOf(content, "count");
  if (content.contains("byte")) return std::string(count, static_cast<char>(NumberOf(content, "byte")));
  std::string text(count, '\0');
  for (std::uint64_t i = 0; i < count; ++i) text[i] = static_cast<char>(0x41 + i / kPage % 26);
  return text;
}

// Names of descriptors belong to the process, all others to the scenario.
std::string DescriptorOf(const Step& step, const std::string& name) { return step.proc + ":" + name; }

// What only root may do, or may do in spite of permission bits.
bool NeedsRoot(const Step& step) {
  if (step.op == "shmget") return (NumberOf(step.arguments, "mode", 0600) & 0600) != 0600;
  if (step.op != "shmat") return step.op == "set_append_only";
  const json flags = step.arguments.value("flags", json::array());
  return std::find(flags.begin(), flags.end(), "SHM_EXEC") != flags.end();
}

// Undoes set_append_only.
void AllowRemoval(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  int flags = 0;
  if (fd >= 0 && ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && (flags & FS_APPEND_FL) != 0) {
    flags &= ~FS_APPEND_FL;
    ioctl(fd, FS_IOC_SETFLAGS, &flags);
  }
  if (fd >= 0) close(fd);
}

}  // namespace

void Player::Play(const Scenario& scenario, const std::function<void(const Step&, const Outcome&)>& report) {
  if (geteuid() != 0 && std::any_of(scenario.steps.begin(), scenario.steps.end(), NeedsRoot)) {
    for (const Step& step : scenario.steps) report(step, {Outcome::Kind::kNotApplicable, nullptr});
    return;
  }
  for (const Step& step : scenario.steps) {
    report(step, Do(scenario, step));
    if (step.want.contains("kernel_bug")) break;  // what follows was never carried out
  }
  for (auto& [name, worker] : workers_) {
    const pid_t pid = worker.pid();
    worker.Exit();
    WaitUntilGone(pid);
  }
  workers_.clear();
  CleanUp();
}

void Player::CleanUp() {
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    AllowRemoval(entry.path());
    std::filesystem::remove_all(entry);
  }
  std::vector<std::string> names;
  client_
      .ListFiles(ram_prefix_,
                 [&](const FileStat& stat) {
                   names.push_back(stat.name);
                   return true;
                 })
      .IgnoreError();
  for (const std::string& name : names) client_.Unlink(name).IgnoreError();
  for (const auto& [name, id] : segments_) client_.ShmRemove(id).IgnoreError();
  devices_.CleanUp();
}

Outcome Player::Do(const Scenario& scenario, const Step& step) {
  const Outcome not_applicable{Outcome::Kind::kNotApplicable, nullptr};
  if (step.want.contains("skipped") || step.want.contains("kernel_bug")) return not_applicable;
  json got;
  try {
    got = CarryOut(step);
  } catch (const std::exception& error) {  // an argument that is none
    got = {{"bad_step", error.what()}};
  }
  const std::string made = step.op == "open" ? DescriptorOf(step, step.as) : step.as;
  if (got.is_null()) {
    unknown_.insert(made);
    return not_applicable;
  }
  unknown_.erase(made);
  if (step.want.is_null()) return {Outcome::Kind::kAgrees, got};  // nothing is compared
  if (!IsComparable(scenario, step)) return {Outcome::Kind::kNotApplicable, got};
  for (const auto& [key, value] : step.want.items()) {
    if (key == "log" || key == "unrepresentable") continue;
    if (!got.contains(key) || got[key] != value) return {Outcome::Kind::kDiffers, got};
  }
  return {Outcome::Kind::kAgrees, got};
}

bool Player::IsComparable(const Scenario& scenario, const Step& step) const {
  if (step.arguments.value("unspecified", false) || step.arguments.value("made_unspecified", false)) return false;
  if (MentionsUnknown(step.want)) return false;
  if (!scenario.HasTag("same-process-overlap")) return true;
  // The recording kernel's list loses or repeats entries then.
  return step.op != "maps" && !(step.op == "munmap" && overlapping_.contains(step.arguments.value("at", "")));
}

// Whether an outcome names a mapping that a step which is not applicable would have made.
bool Player::MentionsUnknown(const json& want) const {
  const auto unknown = [&](const json& name) { return name.is_string() && unknown_.contains(name.get<std::string>()); };
  for (const char* list : {"maps", "inside", "covers"}) {
    for (const auto& entry : want.value(list, json::array())) {
      if (unknown(entry.value("at", json())) || unknown(entry.value("name", json()))) return true;
    }
  }
  const json same = want.value("same_as", json::array());
  return std::any_of(same.begin(), same.end(), unknown);
}

json Player::CarryOut(const Step& step) {
  if (step.op == "provide") return Provide(step);
  if (step.proc.empty()) return nullptr;
  // A name that a step which is not applicable would have made.
  for (const char* key : {"at", "fd", "id", "addr"}) {
    if (!step.arguments.contains(key) || !step.arguments[key].is_string()) continue;
    const std::string name = step.arguments[key];
    if (unknown_.contains(key == std::string("fd") ? DescriptorOf(step, name) : name)) return nullptr;
  }
  if (step.op == "exit" || step.op == "kill") return End(step);
  Worker* worker = WorkerOf(step.proc);
  if (worker == nullptr) return {{"errno", "ECHILD"}};
  if (step.op == "start") return {{"ok", true}};
  if (step.op == "mmap") return Mmap(step, *worker);
  if (step.op == "mmap_many") return MmapMany(step, *worker);
  if (step.op == "clone") return Clone(step, *worker);
  if (step.op == "exec") return Exec(step, *worker);
  if (step.op == "munmap") return Munmap(step, *worker);
  if (step.op == "mremap") return Mremap(step, *worker);
  static const std::set<std::string> kOfMemory{"load", "store", "peek", "poke"};
  if (kOfMemory.contains(step.op)) return Load(step, *worker);
  if (step.op == "maps") return Maps(step, *worker);
  if (step.op == "shmget") return Shmget(step, *worker);
  if (step.op == "shmat" || step.op == "shmctl") return OnSegment(step, *worker);
  if (step.op == "shmdt") return Shmdt(step, *worker);
  if (!kPlain.contains(step.op)) return nullptr;
  json order = step.arguments;
  if (order.contains("path") && step.op != "exec_file") {
    if (step.op == "drive") devices_.Expect(order["path"]);
    order["path"] = RealPath(order["path"].get<std::string>());
    if (order["path"] == "") return nullptr;
  }
  const json answer = worker->Ask(order);
  if (step.op != "read_file" || !answer.contains("contents")) return answer;
  json contents = Contents(answer["contents"], step.want);
  contents["count"] = answer["count"];
  return contents;
}

json Player::Provide(const Step& step) {
  const std::string scenario_path = step.arguments.value("path", "");
  const std::string path = RealPath(scenario_path);
  const std::string contents = PatternOf(step.arguments.value("content", json::object()));
  // Only files of the host's disk and ram files can be made here.
  if (path.rfind(directory_, 0) == 0) {
    std::ofstream(path) << contents;
  } else if (path.rfind(ram_prefix_, 0) == 0) {
    const absl::Status status = ProvideRamFile(path, contents, step.arguments.value("layout", "") == "scattered");
    if (!status.ok()) return {{"errno", std::string(status.message())}};
  } else if (const absl::Status status = devices_.Provide(scenario_path, contents); !status.ok()) {
    unknown_.insert(scenario_path);
    return nullptr;
  }
  return {{"ok", true}};
}

absl::Status Player::ProvideRamFile(const std::string& name, const std::string& contents, bool scattered) {
  absl::StatusOr<File> file = client_.Open(name, O_RDWR | O_CREAT | O_TRUNC, 0755);
  if (!file.ok()) return file.status();
  const auto bytes = std::as_bytes(std::span(contents));
  if (!scattered) {
    if (absl::Status status = file->Ftruncate(contents.size()); !status.ok()) return status;
    return bytes.empty() ? absl::OkStatus() : file->Pwrite(bytes, 0);
  }
  // Between every two pages of it another file gets one.
  absl::StatusOr<File> spacer = client_.Open(name + ".spacer", O_RDWR | O_CREAT, 0755);
  if (!spacer.ok()) return spacer.status();
  for (std::uint64_t at = 0; at < bytes.size(); at += kPage) {
    const auto page = bytes.subspan(at, std::min<std::size_t>(kPage, bytes.size() - at));
    for (const File* to : {&*file, &*spacer}) {
      if (absl::Status status = to->Pwrite(page, at); !status.ok()) return status;
    }
  }
  const absl::StatusOr<FileStat> stat = file->Stat();
  if (!stat.ok()) return stat.status();
  if (stat->runs != stat->allocated / kPage) return absl::InternalError("the file's pages adjoin by chance");
  return absl::OkStatus();
}

json Player::Mmap(const Step& step, Worker& worker) {
  json order = step.arguments;
  std::uint64_t requested = 0;
  if (!AddressOf(step, "addr", "addr_delta", requested)) return nullptr;
  order["address"] = requested;
  const json answer = worker.Ask(order);
  if (!answer.contains("address")) return answer;

  return Place(step, answer, requested);
}

// What is to be said of a new mapping, and where it is for later steps.
json Player::Place(const Step& step, const json& answer, std::uint64_t requested) {
  const std::uint64_t start = answer["address"], length = answer["length"], end = start + length;
  json same = json::array(), inside = json::array(), covers = json::array();
  for (const Piece& piece : pieces_) {
    if (piece.start == start) same.push_back(piece.name);
    if (piece.start < start && start < piece.start + piece.length) {
      inside.push_back({{"name", piece.name}, {"delta", start - piece.start}});
    }
    if (start < piece.start && piece.start < end) {
      covers.push_back({{"name", piece.name}, {"delta", piece.start - start}});
    }
    if (piece.proc == step.proc && piece.start < end && start < piece.start + piece.length) {
      overlapping_.insert({piece.name, step.as});
    }
  }
  names_.push_back(step.as);
  made_at_[step.as] = start;
  pieces_.push_back({step.as, step.proc, start, start, length});
  return {{"ok", true},
          {"page_aligned", start % kPage == 0},
          {"same_as", same},
          {"length", length},
          {"inside", inside},
          {"covers", covers},
          {"at_requested", start == requested}};
}

json Player::MmapMany(const Step& step, Worker& worker) {
  json order = step.arguments;
  order["op"] = "mmap";
  order["prot"] = {"READ", "WRITE"};
  std::uint64_t made = 0;
  for (; made < NumberOf(step.arguments, "count"); ++made) {
    const json answer = worker.Ask(order);
    if (!answer.contains("address")) return answer;
  }
  return {{"ok", true}, {"made", made}};
}

json Player::Munmap(const Step& step, Worker& worker) {
  json order = step.arguments;
  std::uint64_t start = 0;
  if (!AddressOf(step, "at", "delta", start) || HitsAnotherMapping(step, start)) return nullptr;
  order["address"] = start;
  json answer = worker.Ask(order);
  if (!answer.contains("ok")) return answer;
  // What is left of the mapping, for the places that later steps are compared by.
  const auto piece = std::find_if(pieces_.begin(), pieces_.end(), [&](const Piece& at) {
    return at.proc == step.proc && at.start <= start && start < at.start + at.length &&
           (at.name == step.arguments["at"] || at.start != start);
  });
  if (piece == pieces_.end()) return answer;
  const Piece whole = *piece;
  pieces_.erase(piece);
  const std::uint64_t length = NumberOf(step.arguments, "length");
  const std::uint64_t end = length == 0 ? whole.start + whole.length : start + (length + kPage - 1) / kPage * kPage;
  if (whole.start < start) pieces_.push_back({whole.name, whole.proc, whole.made_at, whole.start, start - whole.start});
  if (end < whole.start + whole.length) {
    pieces_.push_back({whole.name, whole.proc, whole.made_at, end, whole.start + whole.length - end});
  }
  return answer;
}

json Player::Clone(const Step& step, Worker& worker) {
  json order = step.arguments;
  std::uint64_t address = 0;
  if (!AddressOf(step, "at", "delta", address)) return nullptr;
  order["address"] = address;
  const json answer = worker.Ask(order);
  if (answer.contains("ok") && order.value("child", "") == "munmap") {
    std::erase_if(pieces_, [&](const Piece& piece) { return piece.proc == step.proc && piece.start == address; });
  }
  return answer;
}

json Player::Shmget(const Step& step, Worker& worker) {
  const json answer = worker.Ask(step.arguments);
  if (!answer.contains("id")) return answer;
  const int id = answer["id"];
  json same = json::array();
  for (const auto& [name, other] : segments_) {
    if (other == id) same.push_back(name);
  }
  segments_.emplace_back(step.as, id);
  return {{"ok", true}, {"same_as", same}};
}

// shmat and shmctl.
json Player::OnSegment(const Step& step, Worker& worker) {
  json order = step.arguments;
  const json& id = step.arguments.at("id");
  if (id.is_number()) {
    order["number"] = id;
  } else {
    const auto segment =
        std::find_if(segments_.begin(), segments_.end(), [&](const auto& at) { return at.first == id; });
    if (segment == segments_.end()) return nullptr;
    order["number"] = segment->second;
  }
  std::uint64_t requested = 0;
  if (!AddressOf(step, "addr", "addr_delta", requested)) return nullptr;
  order["address"] = requested;
  const json answer = worker.Ask(order);
  return answer.contains("address") ? Place(step, answer, requested) : answer;
}

json Player::Shmdt(const Step& step, Worker& worker) {
  json order = step.arguments;
  std::uint64_t start = 0;
  if (!AddressOf(step, "at", "delta", start)) return nullptr;
  order["address"] = start;
  const json answer = worker.Ask(order);
  if (answer.contains("ok")) {
    const auto piece = std::find_if(pieces_.begin(), pieces_.end(),
                                    [&](const Piece& at) { return at.proc == step.proc && at.start == start; });
    if (piece != pieces_.end()) pieces_.erase(piece);
  }
  return answer;
}

json Player::Mremap(const Step& step, Worker& worker) {
  json order = step.arguments;
  std::uint64_t start = 0, target = 0;
  if (!AddressOf(step, "at", "delta", start) || !AddressOf(step, "new_addr", "new_addr_delta", target)) return nullptr;
  order["address"] = start;
  order["new_address"] = target;
  const json answer = worker.Ask(order);
  if (!answer.contains("ok")) return answer;
  for (Piece& piece : pieces_) {
    if (piece.proc == step.proc && piece.start == start) piece.length = answer["length"];
  }
  return {{"ok", true}, {"moved", false}};
}

json Player::Load(const Step& step, Worker& worker) {
  json order = step.arguments;
  std::uint64_t address = 0;
  if (!AddressOf(step, "at", "delta", address)) return nullptr;
  order["address"] = address;
  if (step.arguments.contains("of")) {
    const Worker* const other = WorkerOf(step.arguments["of"]);
    if (other == nullptr) return {{"errno", "ECHILD"}};
    order["pid"] = other->pid();
  }
  const json answer = worker.Ask(order);
  return answer.contains("contents") ? Contents(answer["contents"], step.want) : answer;
}

json Player::Maps(const Step& step, Worker& worker) {
  const json answer = worker.Ask(step.arguments);
  if (!answer.contains("rows")) return answer;
  std::vector<std::pair<std::size_t, json>> rows;  // by order of creation
  std::vector<Piece> unlisted = pieces_;
  for (const auto& row : answer["rows"]) {
    json listed{{"at", nullptr},           {"delta", 0},     {"length", row["length"]}, {"perms", row["perms"]},
                {"offset", row["offset"]}, {"file", nullptr}};
    if (row["path"] != "") listed["file"] = ScenarioPath(row["path"]);
    std::size_t created = names_.size();
    const auto piece = std::find_if(unlisted.begin(), unlisted.end(), [&](const Piece& at) {
      return at.proc == step.proc && at.start == row["start"] && at.length == row["length"];
    });
    if (piece != unlisted.end()) {
      listed["at"] = piece->name;
      listed["delta"] = piece->start - piece->made_at;
      created = static_cast<std::size_t>(std::find(names_.begin(), names_.end(), piece->name) - names_.begin());
      unlisted.erase(piece);
    }
    rows.emplace_back(created, std::move(listed));
  }
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first, a.second["delta"].template get<std::uint64_t>()) <
           std::pair(b.first, b.second["delta"].template get<std::uint64_t>());
  });
  json maps = json::array();
  for (auto& [created, row] : rows) maps.push_back(std::move(row));
  return {{"ok", true}, {"maps", maps}};
}

json Player::End(const Step& step) {
  const auto found = workers_.find(step.proc);
  if (found == workers_.end()) return {{"ok", true}};
  const pid_t pid = found->second.pid();
  step.op == "kill" ? found->second.Kill() : found->second.Exit();
  WaitUntilGone(pid);
  workers_.erase(found);
  ForgetPieces(step.proc);
  return {{"ok", true}};
}

json Player::Exec(const Step& step, Worker& worker) {
  const json answer = worker.Ask(step.arguments);
  if (answer.contains("ok")) ForgetPieces(step.proc);
  return answer;
}

void Player::ForgetPieces(const std::string& proc) {
  std::erase_if(pieces_, [&](const Piece& piece) { return piece.proc == proc; });
}

// Whether an address past the mapping that a step names happens to lie in another one of the process: what mappings
// adjoin is the allocator's luck, there and here.
bool Player::HitsAnotherMapping(const Step& step, std::uint64_t address) const {
  bool in_own = false, in_another = false;
  for (const Piece& piece : pieces_) {
    if (piece.proc != step.proc || address < piece.start || address >= piece.start + piece.length) continue;
    (piece.name == step.arguments.value("at", "") ? in_own : in_another) = true;
  }
  return in_another && !in_own && NumberOf(step.arguments, "delta") != 0;
}

Worker* Player::WorkerOf(const std::string& proc) {
  const auto found = workers_.find(proc);
  if (found != workers_.end()) return &found->second;
  absl::StatusOr<Worker> worker = Worker::Start({program_, "--runtime-dir", runtime_dir_, "replay-worker"});
  if (!worker.ok()) return nullptr;
  return &workers_.emplace(proc, *std::move(worker)).first->second;
}

void Player::WaitUntilGone(pid_t pid) {
  // The daemon learns of the end by itself, a moment after we do.
  while (ErrnoOf(client_.ListMappings(pid, [](const MappingRow&) { return false; })) == 0) std::this_thread::yield();
}

bool Player::AddressOf(const Step& step, const char* key, const char* delta_key, std::uint64_t& address) const {
  const auto found = step.arguments.find(key);
  if (found == step.arguments.end()) return true;
  const std::uint64_t delta = NumberOf(step.arguments, delta_key);
  if (!found->is_string() || found->get<std::string>().rfind("0x", 0) == 0) {
    address = NumberOf(step.arguments, key) + delta;
    return true;
  }
  const std::string name = *found;
  const auto made = made_at_.find(name);
  if (made == made_at_.end()) return false;
  address = made->second + delta;
  return true;
}

std::string Player::RealPath(const std::string& path) {
  static const std::set<std::string> kHostDevices{"null", "full", "random", "urandom"};
  if (path == "pipe" || path == "socket" || path == "eventfd") return path;
  if (path == "dir") return directory_;
  const std::size_t colon = path.find(':');
  if (colon == std::string::npos) return "";
  const std::string kind = path.substr(0, colon), rest = path.substr(colon + 1);
  if (kind == "disk") return directory_ + rest;
  if (kind == "ram") return ram_prefix_ + rest;
  if (kind == "tmpfs") return ram_prefix_ + kTmpfs + rest;
  if (kind == "proc") return "/proc" + rest;
  if (kind == "dev" && kHostDevices.contains(rest)) return "/dev/" + rest;
  return devices_.RealPath(path);
}

std::string Player::ScenarioPath(const std::string& path) const {
  const auto within = [&](const std::string& prefix) { return path.rfind(prefix, 0) == 0; };
  if (within("dev:") || within("mnt:")) return devices_.ScenarioPath(path);
  if (within("/SYSV")) return "sysv-shm (deleted)";
  if (within(directory_)) return "disk:" + path.substr(directory_.size());
  if (within(ram_prefix_ + kTmpfs)) return "tmpfs:" + path.substr((ram_prefix_ + kTmpfs).size());
  if (within(ram_prefix_)) return "ram:" + path.substr(ram_prefix_.size());
  return path;
}

}  // namespace mapbroker::mapctl
