#include "client/mapctl/replay/worker.h"

#include <asm/mman.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/mapctl/replay/scenario.h"
#include "client/mapctl/replay/scripted_driver.h"
#include "mapbroker/client.h"
#include "mapbroker/error.h"
#include "mapbroker/mapbroker.h"

extern char** environ;

namespace mapbroker::mapctl {
namespace {

using nlohmann::json;

json Done() { return {{"ok", true}}; }
json Failed(int error) { return {{"errno", strerrorname_np(error)}}; }
json Answer(const absl::Status& status) { return status.ok() ? Done() : Failed(ErrnoOf(status)); }
json Answer(bool succeeded) { return succeeded ? Done() : Failed(errno); }

// Bits by their names; the recorder's UNKNOWN_BIT is one that no kernel knows.
using Names = std::map<std::string, std::uint64_t>;
const Names kProt{
    {"READ", PROT_READ}, {"WRITE", PROT_WRITE}, {"EXEC", PROT_EXEC}, {"SEM", PROT_SEM}, {"UNKNOWN_BIT", 0x40}};
const Names kMapFlags{
    {"SHARED", MAP_SHARED},       {"PRIVATE", MAP_PRIVATE},       {"SHARED_VALIDATE", MAP_SHARED_VALIDATE},
    {"ANONYMOUS", MAP_ANONYMOUS}, {"FIXED", MAP_FIXED},           {"FIXED_NOREPLACE", MAP_FIXED_NOREPLACE},
    {"SYNC", MAP_SYNC},           {"LOCKED", MAP_LOCKED},         {"POPULATE", MAP_POPULATE},
    {"UNINITIALIZED", 0x4000000}, {"NORESERVE", MAP_NORESERVE},   {"GROWSDOWN", MAP_GROWSDOWN},
    {"STACK", MAP_STACK},         {"HUGETLB", MAP_HUGETLB},       {"NONBLOCK", MAP_NONBLOCK},
    {"DENYWRITE", MAP_DENYWRITE}, {"EXECUTABLE", MAP_EXECUTABLE}, {"UNKNOWN_BIT", 0x8000000}};
const Names kRemapFlags{
    {"MAYMOVE", MREMAP_MAYMOVE}, {"FIXED", MREMAP_FIXED}, {"DONTUNMAP", MREMAP_DONTUNMAP}, {"UNKNOWN_BIT", 64}};
const Names kOpenFlags{{"O_RDONLY", O_RDONLY}, {"O_WRONLY", O_WRONLY}, {"O_RDWR", O_RDWR},
                       {"O_APPEND", O_APPEND}, {"O_PATH", O_PATH},     {"O_CREAT", O_CREAT},
                       {"O_TRUNC", O_TRUNC},   {"O_EXCL", O_EXCL},     {"O_DIRECTORY", O_DIRECTORY}};

const Names kShmFlags{{"IPC_CREAT", IPC_CREAT},   {"IPC_EXCL", IPC_EXCL},  {"SHM_HUGETLB", SHM_HUGETLB},
                      {"SHM_RDONLY", SHM_RDONLY}, {"SHM_RND", SHM_RND},    {"SHM_NORESERVE", SHM_NORESERVE},
                      {"SHM_EXEC", SHM_EXEC},     {"SHM_REMAP", SHM_REMAP}};

const Names kCloneFlags{
    {"VM", CLONE_VM}, {"FS", CLONE_FS}, {"FILES", CLONE_FILES}, {"VFORK", CLONE_VFORK}, {"SIGCHLD", SIGCHLD}};
// Bytes; a child makes one call of the library on it.
constexpr std::size_t kChildStack = 1 << 20;

// Of the files that scenarios create.
constexpr mode_t kMode = 0755;

bool IsPoolFile(const std::string& path) {
  return path.rfind("ram:", 0) == 0 || path.rfind("dev:", 0) == 0 || path.rfind("mnt:", 0) == 0;
}

// Throws std::out_of_range for a name that is none.
std::uint64_t BitsOf(const json& order, const char* key, const Names& names) {
  std::uint64_t bits = 0;
  for (const auto& name : order.value(key, json::array())) bits |= names.at(name.get<std::string>());
  return bits;
}

class Process {
 public:
  Process(const std::string& runtime_dir, Client client, mb_session* c_session)
      : runtime_dir_(runtime_dir), client_(std::move(client)), c_session_(c_session) {}

  // After Exec, in the new program.
  void TakeUp(const json& kept) {
    fds_ = kept.at("fds").get<std::map<std::string, int>>();
    for (const auto& [name, number] : kept.at("files").items()) ram_files_[name] = client_.FileOf(number);
  }

  json CarryOut(const json& order) {
    static const std::map<std::string, json (Process::*)(const json&)> kOrders{
        {"open", &Process::Open},
        {"close", &Process::Close},
        {"ftruncate", &Process::Truncate},
        {"size", &Process::Size},
        {"unlink", &Process::Unlink},
        {"set_append_only", &Process::SetAppendOnly},
        {"write_file", &Process::WriteFile},
        {"read_file", &Process::ReadFile},
        {"mmap", &Process::Mmap},
        {"munmap", &Process::Munmap},
        {"mremap", &Process::Mremap},
        {"load", &Process::Load},
        {"store", &Process::Store},
        {"maps", &Process::Maps},
        {"shmget", &Process::Shmget},
        {"shmat", &Process::Shmat},
        {"shmdt", &Process::Shmdt},
        {"shmctl", &Process::Shmctl},
        {"clone", &Process::Clone},
        {"fork", &Process::Clone},
        {"vfork_exec", &Process::VforkExec},
        {"exec", &Process::Exec},
        {"exec_file", &Process::ExecFile},
        {"ptrace_me", &Process::PtraceMe},
        {"peek", &Process::Peek},
        {"poke", &Process::Poke},
        {"drive", &Process::Drive},
        {"undrive", &Process::Undrive},
        {"driver_calls", &Process::DriverCalls},
    };
    const std::string op = order.at("op");
    if (const auto found = kOrders.find(op); found != kOrders.end()) return (this->*found->second)(order);
    return NoSuchCall(op);
  }

 private:
  int FdOf(const json& order) const {
    // A number is one that the scenario chose, not one that it was given.
    if (const auto fd = order.find("fd"); fd != order.end() && fd->is_number()) return fd->get<int>();
    const auto found = fds_.find(order.value("fd", ""));
    return found == fds_.end() ? -1 : found->second;
  }

  // The ram file that the order names, null if it names something else.
  const File* PoolFileOf(const json& order) const {
    const auto fd = order.find("fd");
    if (fd == order.end() || !fd->is_string()) return nullptr;
    const auto found = ram_files_.find(fd->get<std::string>());
    return found == ram_files_.end() ? nullptr : &found->second;
  }

  // "path": a real path, the name of a ram file, or one of the kinds without one.
  json Open(const json& order) {
    const std::string path = order.at("path");
    if (IsPoolFile(path)) {
      auto file = client_.Open(path, static_cast<int>(BitsOf(order, "flags", kOpenFlags)), kMode);
      if (!file.ok()) return Answer(file.status());
      ram_files_[order.at("as")] = *std::move(file);
      return Done();
    }
    const int flags = static_cast<int>(BitsOf(order, "flags", kOpenFlags)) | O_CLOEXEC;
    int fd;
    if (path == "pipe") {
      int ends[2];
      fd = pipe2(ends, O_CLOEXEC) == 0 ? ends[0] : -1;
    } else if (path == "socket") {
      fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    } else if (path == "eventfd") {
      fd = eventfd(0, EFD_CLOEXEC);
    } else {
      fd = open(path.c_str(), flags, kMode);
    }
    if (fd < 0) return Failed(errno);
    fds_[order.at("as")] = fd;
    return Done();
  }
  json Close(const json& order) {
    if (ram_files_.erase(order.value("fd", "")) > 0) return Done();
    const int fd = FdOf(order);
    fds_.erase(order.value("fd", ""));
    return Answer(close(fd) == 0);
  }
  json Truncate(const json& order) {
    if (const File* file = PoolFileOf(order)) return Answer(file->Ftruncate(NumberOf(order, "size")));
    return Answer(ftruncate(FdOf(order), static_cast<off_t>(NumberOf(order, "size"))) == 0);
  }
  json Size(const json& order) {
    if (const File* file = PoolFileOf(order)) {
      const absl::StatusOr<FileStat> stat = file->Stat();
      if (!stat.ok()) return Answer(stat.status());
      return {{"ok", true}, {"size", stat->size}};
    }
    struct stat stat;
    if (fstat(FdOf(order), &stat) != 0) return Failed(errno);
    return {{"ok", true}, {"size", stat.st_size}};
  }
  json Unlink(const json& order) {
    if (IsPoolFile(order.at("path"))) return Answer(client_.Unlink(order.at("path")));
    return Answer(unlink(order.at("path").get<std::string>().c_str()) == 0);
  }
  json SetAppendOnly(const json& order) {
    if (PoolFileOf(order) != nullptr) return Failed(ENOTTY);  // they have no such attribute
    int flags = 0;
    const int fd = FdOf(order);
    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) != 0) return Failed(errno);
    flags |= FS_APPEND_FL;
    return Answer(ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0);
  }
  json WriteFile(const json& order) {
    const std::string text = order.contains("text")
                                 ? order["text"].get<std::string>()
                                 : std::string(NumberOf(order, "count"), static_cast<char>(NumberOf(order, "byte")));
    if (const File* file = PoolFileOf(order)) {
      const absl::Status status = file->Pwrite(std::as_bytes(std::span(text)), NumberOf(order, "offset"));
      if (!status.ok()) return Answer(status);
      return {{"ok", true}, {"count", text.size()}};
    }
    const ssize_t count = pwrite(FdOf(order), text.data(), text.size(), static_cast<off_t>(NumberOf(order, "offset")));
    if (count < 0) return Failed(errno);
    return {{"ok", true}, {"count", count}};
  }
  json ReadFile(const json& order) {
    std::string text(NumberOf(order, "count"), '\0');
    ssize_t count;
    if (const File* file = PoolFileOf(order)) {
      const auto read = file->Pread(std::as_writable_bytes(std::span(text)), NumberOf(order, "offset"));
      if (!read.ok()) return Answer(read.status());
      count = static_cast<ssize_t>(*read);
    } else {
      count = pread(FdOf(order), text.data(), text.size(), static_cast<off_t>(NumberOf(order, "offset")));
      if (count < 0) return Failed(errno);
    }
    return {{"ok", true},
            {"count", count},
            {"contents", absl::BytesToHexString(text.substr(0, static_cast<std::size_t>(count)))}};
  }

  json Mmap(const json& order) {
    auto mapping = client_.Map({.length = NumberOf(order, "length"),
                                .prot = static_cast<int>(BitsOf(order, "prot", kProt)),
                                .flags = static_cast<int>(BitsOf(order, "flags", kMapFlags)),
                                .fd = FdOf(order),
                                .file = PoolFileOf(order),
                                .offset = NumberOf(order, "offset"),
                                .address = NumberOf(order, "address")});
    return Keep(mapping);
  }
  static json Keep(absl::StatusOr<Mapping>& mapping) {
    if (!mapping.ok()) return Answer(mapping.status());
    const std::uint64_t length = mapping->length();
    return {{"ok", true}, {"address", mapping->Release()}, {"length", length}};
  }
  json Munmap(const json& order) {
    return Answer(client_.Munmap(NumberOf(order, "address"), NumberOf(order, "length")));
  }
  json Mremap(const json& order) {
    const auto length =
        client_.Mremap(NumberOf(order, "address"), NumberOf(order, "old_length"), NumberOf(order, "new_length"),
                       static_cast<int>(BitsOf(order, "flags", kRemapFlags)), NumberOf(order, "new_address"));
    if (!length.ok()) return Answer(length.status());
    return {{"ok", true}, {"length", *length}};
  }
  json Shmget(const json& order) {
    const int key = order.at("key") == "IPC_PRIVATE" ? IPC_PRIVATE : static_cast<int>(NumberOf(order, "key"));
    const int flags = static_cast<int>(BitsOf(order, "flags", kShmFlags) | NumberOf(order, "mode", 0600));
    const absl::StatusOr<int> id = client_.Shmget(key, NumberOf(order, "size"), flags);
    if (!id.ok()) return Answer(id.status());
    return {{"ok", true}, {"id", *id}};
  }
  json Shmat(const json& order) {
    auto mapping = client_.Shmat(order.at("number"), static_cast<int>(BitsOf(order, "flags", kShmFlags)),
                                 NumberOf(order, "address"));
    return Keep(mapping);
  }
  json Shmdt(const json& order) { return Answer(client_.Shmdt(NumberOf(order, "address"))); }
  json Shmctl(const json& order) {
    const int id = order.at("number");
    if (order.at("cmd") == "IPC_RMID") return Answer(client_.ShmRemove(id));
    const absl::StatusOr<ShmSegment> segment = client_.ShmStat(id);
    if (!segment.ok()) return Answer(segment.status());
    return {{"ok", true},
            {"size", segment->size},
            {"nattch", segment->nattch},
            {"marked_destroyed", segment->marked_destroyed}};
  }
  json Load(const json& order) {
    const auto* from = reinterpret_cast<const char*>(client_.pool_base()) + NumberOf(order, "address");
    return {{"ok", true}, {"contents", absl::BytesToHexString({from, NumberOf(order, "count")})}};
  }
  json Store(const json& order) {
    std::memset(client_.pool_base() + NumberOf(order, "address"), static_cast<int>(NumberOf(order, "byte")),
                NumberOf(order, "count"));
    return Done();
  }
  json Maps(const json&) {
    json rows = json::array();
    const absl::Status status = client_.ListMappings(getpid(), [&](const MappingRow& row) {
      rows.push_back({{"start", row.start},
                      {"length", row.end - row.start},
                      {"perms", row.perms},
                      {"offset", row.offset},
                      {"path", row.path}});
      return true;
    });
    if (!status.ok()) return Answer(status);
    return {{"ok", true}, {"rows", rows}};
  }

  // X1 to X3. "child": what the child does before it exits with 7.
  json Clone(const json& order) {
    const std::uint64_t flags = BitsOf(order, "flags", kCloneFlags) | SIGCHLD;
    ChildDeed deed{this, &order};
    std::vector<std::byte> stack((flags & CLONE_VM) != 0 ? kChildStack : 0);
    const pid_t pid =
        (flags & CLONE_VM) != 0 ? clone(InChild, stack.data() + stack.size(), static_cast<int>(flags), &deed) : fork();
    if (pid == 0) _exit(ErrnoOf(client_.Statistics().status()));  // the child's first call
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid) return Failed(errno);
    if ((flags & CLONE_VM) == 0) return WEXITSTATUS(status) == 0 ? Done() : Failed(WEXITSTATUS(status));
    return {{"ok", true}, {"child_exit", WEXITSTATUS(status)}};
  }
  struct ChildDeed {
    Process* process;
    const json* order;
  };
  static int InChild(void* argument) {
    const auto& [process, order] = *static_cast<ChildDeed*>(argument);
    const std::string deed = order->value("child", "none");
    if (deed == "store") process->client_.pool_base()[NumberOf(*order, "address")] = std::byte{0x5a};
    if (deed == "munmap" && !process->client_.Munmap(NumberOf(*order, "address"), 4096).ok()) _exit(1);
    if (deed == "mmap") {
      auto mapping =
          process->client_.Map({.length = 8192, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
      if (!mapping.ok()) _exit(1);
      mapping->Release();
    }
    _exit(7);
  }
  json VforkExec(const json&) {
    char shell[] = "sh", option[] = "-c", script[] = "exit 5";
    char* const argv[] = {shell, option, script, nullptr};
    pid_t pid;
    if (const int error = posix_spawn(&pid, "/bin/sh", nullptr, nullptr, argv, environ)) return Failed(error);
    int status = 0;
    if (waitpid(pid, &status, 0) != pid) return Failed(errno);
    return {{"ok", true}, {"child_exit", WEXITSTATUS(status)}};
  }
  // X4: the answer is the new program's. What it must know comes in a file that nobody else can open.
  json Exec(const json&) {
    json kept{{"token", client_.Token()}, {"fds", fds_}, {"files", json::object()}};
    for (const auto& [name, file] : ram_files_) kept["files"][name] = file.number();
    for (const auto& [name, fd] : fds_) fcntl(fd, F_SETFD, 0);
    const int memory = memfd_create("kept", 0);
    const std::string text = kept.dump();
    if (memory < 0 || write(memory, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
      return Failed(errno);
    }
    mb_disconnect(c_session_);
    std::string number = std::to_string(memory);
    std::vector<std::string> words{"mapctl", "--runtime-dir", runtime_dir_, "replay-worker", "--kept", number};
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    execv("/proc/self/exe", argv.data());
    std::cerr << "mapctl: cannot execute itself: " << std::strerror(errno) << '\n';
    std::abort();  // half of what it had is gone
  }
  // X4: runs a program "count" times at once by `mapctl exec`; how many regions hold its text and its data.
  json ExecFile(const json& order) {
    const std::string path = order.at("path");
    int output[2];
    if (pipe2(output, O_CLOEXEC) != 0) return Failed(errno);
    // Full, so that each is still there when it is looked at.
    fcntl(output[1], F_SETFL, O_NONBLOCK);
    while (write(output[1], path.data(), 1) == 1) {
    }
    fcntl(output[1], F_SETFL, 0);
    std::vector<Worker> programs;
    std::set<std::uint64_t> text, data;
    for (std::uint64_t i = 0; i < NumberOf(order, "count"); ++i) {
      absl::StatusOr<Worker> program =
          Worker::Start({"/proc/self/exe", "--runtime-dir", runtime_dir_, "exec", path, "--version"}, output[1]);
      if (!program.ok()) return Answer(program.status());
      if (!IsRunning(program->pid(), path)) return Failed(ENOEXEC);
      const absl::Status status = client_.ListMappings(program->pid(), [&](const MappingRow& row) {
        if (row.path != std::filesystem::canonical(path)) return true;
        if (row.perms[1] == 'w') data.insert(row.start);
        if (row.perms[2] == 'x') text.insert(row.start);
        return true;
      });
      if (!status.ok()) return Answer(status);
      programs.push_back(*std::move(program));
    }
    close(output[0]);
    close(output[1]);
    return {{"ok", true}, {"text", text.size()}, {"data", data.size()}};
  }
  // Whether the process has come to run this program: false if it has ended.
  static bool IsRunning(pid_t pid, const std::string& path) {
    const std::string wanted = std::filesystem::path(path).filename();
    siginfo_t ended{};
    while (waitid(P_PID, static_cast<id_t>(pid), &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid == 0) {
      std::string name;
      std::getline(std::ifstream(absl::StrCat("/proc/", pid, "/comm")), name);
      if (name == wanted) return true;
      std::this_thread::yield();
    }
    return false;
  }
  json Peek(const json& order) {
    std::string bytes(NumberOf(order, "count"), '\0');
    const auto count =
        client_.Peek(order.at("pid"), NumberOf(order, "address"), std::as_writable_bytes(std::span(bytes)));
    if (!count.ok()) return Answer(count.status());
    return {{"ok", true}, {"contents", absl::BytesToHexString(bytes.substr(0, *count))}};
  }
  json Poke(const json& order) {
    const std::string bytes(NumberOf(order, "count"), static_cast<char>(NumberOf(order, "byte")));
    const auto count = client_.Poke(order.at("pid"), NumberOf(order, "address"), std::as_bytes(std::span(bytes)));
    if (!count.ok()) return Answer(count.status());
    return {{"ok", true}, {"count", *count}};
  }
  json PtraceMe(const json&) { return Answer(client_.SetTraced(0, true)); }

  // D12. "path" names the device, in these three.
  json Drive(const json& order) {
    auto driver = ScriptedDriver::Register(client_, order);
    if (!driver.ok()) return Answer(driver.status());
    drivers_[order.at("path")] = *std::move(driver);
    return Done();
  }
  json Undrive(const json& order) { return drivers_.erase(order.at("path")) > 0 ? Done() : Failed(ENOENT); }
  json DriverCalls(const json& order) { return drivers_.at(order.at("path"))->Calls(); }

  // U4; the arguments do not matter.
  json NoSuchCall(const std::string& op) {
    int result = 0;
    if (op == "mprotect")
      result = mb_mprotect(c_session_, nullptr, 0, 0);
    else if (op == "msync")
      result = mb_msync(c_session_, nullptr, 0, 0);
    else if (op == "mlock")
      result = mb_mlock(c_session_, nullptr, 0);
    else if (op == "munlock")
      result = mb_munlock(c_session_, nullptr, 0);
    else if (op == "mlockall")
      result = mb_mlockall(c_session_, 0);
    else if (op == "munlockall")
      result = mb_munlockall(c_session_);
    else if (op == "mincore")
      result = mb_mincore(c_session_, nullptr, 0, nullptr);
    else if (op == "madvise")
      result = mb_madvise(c_session_, nullptr, 0, 0);
    else if (op == "remap_file_pages")
      result = mb_remap_file_pages(c_session_, nullptr, 0, 0, 0, 0);
    return Answer(result == 0);
  }

  const std::string runtime_dir_;
  Client client_;
  mb_session* c_session_;
  std::map<std::string, int> fds_;
  std::map<std::string, File> ram_files_;
  std::map<std::string, std::unique_ptr<ScriptedDriver>> drivers_;  // by the device's name
};

}  // namespace

int WorkerMain(const std::string& runtime_dir, int kept_in) {
  json kept = json::object();
  if (kept_in >= 0) kept = json::parse(std::ifstream(absl::StrCat("/proc/self/fd/", kept_in)));
  absl::StatusOr<Client> client = Client::Connect({.runtime_dir = runtime_dir,
                                                   .attach = Attach::kWholePool,
                                                   .token = kept.value("token", ""),
                                                   .executed = kept_in >= 0});
  mb_session* c_session = mb_connect(runtime_dir.c_str());
  if (!client.ok() || c_session == nullptr) {
    std::cerr << "mapctl: " << (client.ok() ? mb_strerror() : std::string(client.status().message())) << '\n';
    return EXIT_FAILURE;
  }
  Process process(runtime_dir, *std::move(client), c_session);
  if (kept_in >= 0) {
    close(kept_in);
    process.TakeUp(kept);
    std::cout << Done() << std::endl;
  }
  std::string line;
  while (std::getline(std::cin, line)) {
    json answer;
    try {
      answer = process.CarryOut(json::parse(line));
    } catch (const std::exception& error) {
      answer = {{"bad_step", error.what()}};
    }
    std::cout << answer << std::endl;
  }
  mb_disconnect(c_session);
  return EXIT_SUCCESS;
}

absl::StatusOr<Worker> Worker::Start(std::vector<std::string> words, int output) {
  int orders[2], answers[2];
  if (pipe2(orders, O_CLOEXEC) != 0 || pipe2(answers, O_CLOEXEC) != 0) {
    return absl::InternalError(absl::StrCat("cannot make a pipe: ", std::strerror(errno)));
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, orders[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output < 0 ? answers[1] : output, STDOUT_FILENO);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t pid;
  const int error = posix_spawn(&pid, words[0].c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(orders[0]);
  close(answers[1]);
  if (error != 0) {
    close(orders[1]);
    close(answers[0]);
    return absl::InternalError(absl::StrCat("cannot start ", words[0], ": ", std::strerror(error)));
  }
  return Worker(pid, fdopen(orders[1], "w"), fdopen(answers[0], "r"));
}

Worker::Worker(Worker&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)),
      orders_(std::exchange(other.orders_, nullptr)),
      answers_(std::exchange(other.answers_, nullptr)) {}

Worker::~Worker() {
  if (pid_ != 0) Kill();
}

json Worker::Ask(const json& order) {
  const std::string line = order.dump() + "\n";
  char* text = nullptr;
  std::size_t size = 0;
  json answer{{"errno", "ECHILD"}};
  if (std::fwrite(line.data(), 1, line.size(), orders_) == line.size() && std::fflush(orders_) == 0 &&
      getline(&text, &size, answers_) > 0) {
    answer = json::parse(text);
  }
  std::free(text);
  return answer;
}

void Worker::Exit() {
  std::fclose(std::exchange(orders_, nullptr));
  Reap();
}

void Worker::Kill() {
  kill(pid_, SIGKILL);
  Reap();
}

void Worker::Reap() {
  waitpid(pid_, nullptr, 0);
  pid_ = 0;
  if (orders_ != nullptr) std::fclose(std::exchange(orders_, nullptr));
  std::fclose(std::exchange(answers_, nullptr));
}

}  // namespace mapbroker::mapctl
