// A client of the storm: makes calls at random, checks all that it is given, and dies at random.
//
//   storm_client RUNTIME_DIR FILES_DIR JOURNAL NUMBER CLIENTS SEED [TOKEN]
//
// "pause" on standard input, read between two calls: it checks all that it holds, says what it believes, a line each
// ("ADDRESS LENGTH HASH", pool addresses), then "." with how many calls it has made, and waits for "go". What it finds
// wrong it says on standard error, beginning with "lost", "residue" or "wrong", and exits with kWrong.
//
// Mappings go with the process, and so does what it believes of them. Ram files and segments stay: what it believes of
// them stands in the journal, for the next client of its number. A call that was under way when the process or the
// daemon ended is a "maybe", and looked up.
#include <fcntl.h>
#include <poll.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "mapbroker/client.h"
#include "mapbroker/error.h"
#include "shm_backend/unique_fd.h"
#include "tests/system/storm_pattern.h"

namespace mapbroker::testing {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;
constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;
// Mappings at a time.
constexpr std::size_t kMost = 24;
constexpr std::uint64_t kRamFiles = 3, kSegments = 2;

// How long it waits for a daemon: longer than any test.
constexpr std::chrono::minutes kPatience(5);

[[noreturn]] void Wrong(const std::string& what) {
  std::cerr << what << std::endl;
  _exit(kWrong);
}

std::string At(const Mapping& mapping) {
  return " in the mapping of " + std::to_string(mapping.length()) + " bytes at pool address " +
         std::to_string(mapping.address());
}

// A ram file or a segment of this client's, by what it is called in the journal.
enum class Belief { kAbsent, kExists, kMaybe };

class StormClient {
 public:
  explicit StormClient(char** arguments)
      : arguments_(arguments),
        runtime_dir_(arguments[1]),
        files_dir_(arguments[2]),
        number_(std::stoull(arguments[4])),
        clients_(std::stoull(arguments[5])),
        random_(std::stoull(arguments[6]) + static_cast<std::uint64_t>(getpid())),
        journal_(open(arguments[3], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600)),
        beliefs_(kRamFiles + kSegments, Belief::kAbsent) {
    std::ifstream told(arguments[3]);
    std::size_t thing;
    for (std::string word; told >> thing >> word;) {
      if (thing >= beliefs_.size()) break;
      beliefs_[thing] = word == "exists" ? Belief::kExists : word == "absent" ? Belief::kAbsent : Belief::kMaybe;
    }
  }

  [[noreturn]] void Run() {
    Connect(arguments_[7] == nullptr ? "" : arguments_[7]);
    CheckThings();
    for (;;) {
      Obey();
      Step();
      ++calls_;
    }
  }

 private:
  struct Held {
    Mapping mapping;
    std::uint64_t owner = 0;  // of the pattern; 0: see `check`
    std::uint64_t from = 0;
    bool or_zero = false;
    bool is_private = false;                 // and anonymous, so that it can be resized
    std::uint64_t pattern_end = UINT64_MAX;  // bytes; zeros from there
    std::optional<File> file = {};           // kept open, or not
  };

  std::uint64_t Random(std::uint64_t below) { return random_() % below; }

  void Connect(const std::string& token) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    ConnectOptions options{.runtime_dir = runtime_dir_,
                           .attach = Random(2) == 0 ? Attach::kRegion : Attach::kWholePool,
                           .token = token,
                           .executed = !token.empty(),
                           .reconnect_timeout = kPatience};
    for (;;) {
      absl::StatusOr<Client> client = Client::Connect(options);
      if (client.ok()) {
        client_ = *std::move(client);
        return;
      }
      // The session that a program was executed over may have ended in the attempt before.
      if (ErrnoOf(client.status()) == ESRCH) {
        options.token.clear();
        options.executed = false;
      } else if (!absl::IsUnavailable(client.status())) {
        Wrong("wrong: no session: " + client.status().ToString());
      }
      if (std::chrono::steady_clock::now() > deadline) Wrong("wrong: no daemon");
      std::this_thread::sleep_for(std::chrono::milliseconds(5 + Random(20)));
    }
  }

  // Byte by byte: what was read ahead would be seen neither by poll(2) nor by the program that this one executes.
  static std::string ReadLine() {
    std::string line;
    for (char byte; read(STDIN_FILENO, &byte, 1) == 1; line += byte) {
      if (byte == '\n') return line;
    }
    _exit(0);
  }

  void Obey() {
    pollfd input{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    if (poll(&input, 1, 0) == 0) return;
    if (ReadLine() != "pause") return;
    CheckThings();
    for (const Held& held : held_) {
      Check(held);
      const std::span<const std::byte> bytes = held.mapping.bytes();
      std::cout << held.mapping.address() << ' ' << held.mapping.length() << ' '
                << std::hash<std::string_view>()({reinterpret_cast<const char*>(bytes.data()), bytes.size()}) << '\n';
    }
    std::cout << ". " << std::exchange(calls_, 0) << std::endl;
    ReadLine();  // "go"
  }

  // Of 100 steps so many.
  void Step() {
    const std::uint64_t dice = Random(100);
    if (held_.size() >= kMost || (dice < 28 && !held_.empty())) return Unmap(Random(held_.size()));
    if (dice < 42) return MapAnonymous(kPage * (1 + Random(16)));
    if (dice < 54) return MapAnonymous(1 + Random(3000));
    if (dice < 64) return MapFile(PROT_READ);
    if (dice < 72) return MapFile(kReadWrite);
    if (dice < 77) return UseRamFile(Random(kRamFiles));
    if (dice < 81) return SeeRamFile(Random(clients_), Random(kRamFiles));
    if (dice < 85) return UseSegment(Random(kSegments));
    if (dice < 88) return SeeSegment(Random(clients_), Random(kSegments));
    if (dice < 92) return Resize();
    if (dice < 94) return Unlink(Random(kRamFiles));
    if (dice < 96) return RemoveSegment(Random(kSegments));
    if (dice == 96) return Reconnect();
    if (dice == 97 && Random(3) == 0) return Execute();
    if (dice == 98 && Random(4) == 0) raise(SIGKILL);
    if (dice == 99 && Random(4) == 0) _exit(0);
  }

  // Refusals that leave no doubt are the daemon's right: a full pool, a file that somebody else has just unlinked.
  static bool Granted(const absl::Status& status, std::initializer_list<int> allowed) {
    if (status.ok()) return true;
    for (const int error : allowed) {
      if (ErrnoOf(status) == error) return false;
    }
    Wrong("wrong: refused: " + status.ToString());
  }

  void Check(const Held& held) const {
    const std::span<const std::byte> bytes = held.mapping.bytes();
    const std::size_t end = std::min<std::uint64_t>(bytes.size(), held.pattern_end);
    const std::size_t fault = FirstFault(bytes.first(end), held.owner, held.from, held.or_zero);
    if (fault < end) Wrong("lost: byte " + std::to_string(fault) + " is not what was written" + At(held.mapping));
    if (!IsZero(bytes.subspan(end))) Wrong("lost: zeros past the file's end are none any more" + At(held.mapping));
  }

  void MapAnonymous(std::uint64_t length) {
    absl::StatusOr<Mapping> mapping = client_->Map({.length = length, .prot = kReadWrite, .flags = kAnonymous});
    if (!Granted(mapping.status(), {ENOMEM})) return;
    if (!IsZero(mapping->bytes())) Wrong("residue" + At(*mapping));
    const std::uint64_t owner = NextOwner();
    Paint(mapping->bytes(), owner);
    held_.push_back({.mapping = *std::move(mapping), .owner = owner, .is_private = true});
  }

  void MapFile(int prot) {
    const std::uint64_t file = Random(kStormFiles), size = StormFileSize(file);
    const std::uint64_t offset = kPage * Random(size / kPage + 1), length = 1 + Random(size - offset + kPage / 2);
    const shm::UniqueFd fd(open((files_dir_ + "/" + std::to_string(file)).c_str(), O_RDONLY | O_CLOEXEC));
    absl::StatusOr<Mapping> mapping =
        client_->Map({.length = length, .prot = prot, .flags = MAP_PRIVATE, .fd = fd.get(), .offset = offset});
    if (!Granted(mapping.status(), {ENOMEM, EINVAL})) return;
    Held held{.mapping = *std::move(mapping),
              .owner = StormFileOwner(file),
              .from = offset,
              .pattern_end = size > offset ? size - offset : 0};
    const std::span<std::byte> bytes = held.mapping.bytes();
    const std::size_t end = std::min<std::uint64_t>(bytes.size(), held.pattern_end);
    if (FirstFault(bytes.first(end), held.owner, held.from) < end)
      Wrong("residue in place of the file" + At(held.mapping));
    if (!IsZero(bytes.subspan(end))) Wrong("residue past the file's end" + At(held.mapping));
    if ((prot & PROT_WRITE) != 0) {
      held.owner = NextOwner();
      held.from = 0;
      held.pattern_end = UINT64_MAX;
      Paint(bytes, held.owner);
    }
    held_.push_back(std::move(held));
  }

  void Unmap(std::size_t at) {
    Check(held_[at]);
    const absl::Status status = held_[at].mapping.Unmap();
    if (!status.ok()) Wrong("lost: an unmapping was refused: " + status.ToString());
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  void Resize() {
    for (Held& held : held_) {
      if (!held.is_private || held.mapping.length() < 2 * kPage || held.mapping.length() % kPage != 0) continue;
      const std::uint64_t length = held.mapping.length() - kPage;
      const absl::Status status = held.mapping.Resize(length);
      if (!status.ok()) Wrong("lost: a shrinking was refused: " + status.ToString());
      return;
    }
  }

  // The journal says what is about to be tried, and what has come of it.
  void Note(std::size_t thing, Belief belief) {
    beliefs_[thing] = belief;
    const char* const word = belief == Belief::kExists ? "exists" : belief == Belief::kAbsent ? "absent" : "maybe";
    const std::string line = std::to_string(thing) + " " + word + "\n";
    if (write(journal_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
      Wrong("wrong: no journal");
  }

  static std::string NameOf(std::uint64_t client, std::uint64_t file) {
    return "ram:/storm-" + std::to_string(client) + "-" + std::to_string(file);
  }
  static std::uint64_t RamFileSize(std::uint64_t file) { return (1 + 2 * file) * kPage; }
  static int KeyOf(std::uint64_t client, std::uint64_t segment) {
    return static_cast<int>(100 + client * kSegments + segment);
  }

  void UseRamFile(std::uint64_t file) {
    const std::string name = NameOf(number_, file);
    const bool make = beliefs_[file] == Belief::kAbsent;
    if (make) Note(file, Belief::kMaybe);
    absl::StatusOr<File> opened = client_->Open(name, O_RDWR | (make ? O_CREAT : 0), 0644);
    if (!Granted(opened.status(), {ECONNRESET, EMFILE})) return make ? LookUpRamFile(file) : void();
    if (make) Note(file, Belief::kExists);
    if (!Granted(opened->Ftruncate(RamFileSize(file)), {ENOMEM})) return;
    if (Random(4) == 0) {
      std::vector<std::byte> page(kPage);
      const std::uint64_t offset = kPage * Random(RamFileSize(file) / kPage);
      Paint(page, RamFileOwner(number_, file), offset);
      if (!Granted(opened->Pwrite(page, offset), {ECONNRESET, ENOMEM})) return;
    }
    absl::StatusOr<Mapping> mapping =
        client_->Map({.length = RamFileSize(file), .prot = kReadWrite, .flags = MAP_SHARED, .file = &*opened});
    if (!Granted(mapping.status(), {ENOMEM, ENODEV})) return;
    Held held{.mapping = *std::move(mapping), .owner = RamFileOwner(number_, file), .or_zero = true};
    Check(held);
    Paint(held.mapping.bytes(), held.owner);
    if (Random(2) == 0) held.file = *std::move(opened);
    held_.push_back(std::move(held));
  }

  void SeeRamFile(std::uint64_t client, std::uint64_t file) {
    absl::StatusOr<File> opened = client_->Open(NameOf(client, file), O_RDONLY);
    if (!Granted(opened.status(), {ENOENT, ECONNRESET, EMFILE})) return;
    absl::StatusOr<Mapping> mapping =
        client_->Map({.length = RamFileSize(file), .prot = PROT_READ, .flags = MAP_SHARED, .file = &*opened});
    // It may have no size yet.
    if (!Granted(mapping.status(), {ENOMEM, ENODEV, EINVAL})) return;
    Held held{.mapping = *std::move(mapping), .owner = RamFileOwner(client, file), .or_zero = true};
    Check(held);
    held_.push_back(std::move(held));
  }

  void Unlink(std::uint64_t file) {
    if (beliefs_[file] != Belief::kExists) return;
    Note(file, Belief::kMaybe);
    if (Granted(client_->Unlink(NameOf(number_, file)), {ECONNRESET})) return Note(file, Belief::kAbsent);
    LookUpRamFile(file);
  }

  void LookUpRamFile(std::uint64_t file) {
    const absl::StatusOr<FileStat> stat = client_->Stat(NameOf(number_, file));
    if (!stat.ok() && ErrnoOf(stat.status()) != ENOENT) Wrong("wrong: " + stat.status().ToString());
    const Belief is = stat.ok() ? Belief::kExists : Belief::kAbsent;
    if (beliefs_[file] == Belief::kExists && is == Belief::kAbsent) Wrong("lost: " + NameOf(number_, file));
    if (beliefs_[file] == Belief::kAbsent && is == Belief::kExists) Wrong("wrong: unlinked and there again");
    if (beliefs_[file] == Belief::kMaybe) Note(file, is);
    if (!stat.ok()) return;
    // Its contents too.
    const absl::StatusOr<File> opened = client_->Open(NameOf(number_, file), O_RDONLY);
    if (!Granted(opened.status(), {ECONNRESET, EMFILE})) return;
    std::vector<std::byte> bytes(stat->size);
    const absl::StatusOr<std::size_t> read = opened->Pread(bytes, 0);
    if (!read.ok()) Wrong("wrong: " + read.status().ToString());
    if (FirstFault(bytes, RamFileOwner(number_, file), 0, true) < bytes.size()) Wrong("residue in a ram file");
  }

  void UseSegment(std::uint64_t segment) {
    const std::size_t thing = kRamFiles + segment;
    const int key = KeyOf(number_, segment);
    const bool make = beliefs_[thing] == Belief::kAbsent;
    if (make) Note(thing, Belief::kMaybe);
    const absl::StatusOr<int> id = client_->Shmget(key, 3 * kPage, (make ? IPC_CREAT : 0) | 0644);
    if (!Granted(id.status(), {ECONNRESET, ENOMEM})) return make ? LookUpSegment(segment) : void();
    if (make) Note(thing, Belief::kExists);
    Attach(*id, 0, SegmentOwner(static_cast<std::uint64_t>(key)));
  }

  void SeeSegment(std::uint64_t client, std::uint64_t segment) {
    const int key = KeyOf(client, segment);
    const absl::StatusOr<int> id = client_->Shmget(key, 0, 0444);
    if (!Granted(id.status(), {ENOENT, ECONNRESET})) return;
    Attach(*id, SHM_RDONLY, SegmentOwner(static_cast<std::uint64_t>(key)));
  }

  void Attach(int id, int flags, std::uint64_t owner) {
    absl::StatusOr<Mapping> mapping = client_->Shmat(id, flags);
    // Its owner may have removed it meanwhile.
    if (!Granted(mapping.status(), {EINVAL})) return;
    Held held{.mapping = *std::move(mapping), .owner = owner, .or_zero = true};
    Check(held);
    if (flags == 0) Paint(held.mapping.bytes(), owner);
    held_.push_back(std::move(held));
  }

  void RemoveSegment(std::uint64_t segment) {
    const std::size_t thing = kRamFiles + segment;
    if (beliefs_[thing] != Belief::kExists) return;
    const absl::StatusOr<int> id = client_->Shmget(KeyOf(number_, segment), 0, 0644);
    if (!Granted(id.status(), {ECONNRESET})) return;
    Note(thing, Belief::kMaybe);
    if (Granted(client_->ShmRemove(*id), {ECONNRESET})) return Note(thing, Belief::kAbsent);
    LookUpSegment(segment);
  }

  void LookUpSegment(std::uint64_t segment) {
    const std::size_t thing = kRamFiles + segment;
    absl::StatusOr<int> id = client_->Shmget(KeyOf(number_, segment), 0, 0444);
    while (ErrnoOf(id.status()) == ECONNRESET) id = client_->Shmget(KeyOf(number_, segment), 0, 0444);
    if (!id.ok() && ErrnoOf(id.status()) != ENOENT) Wrong("wrong: " + id.status().ToString());
    if (beliefs_[thing] == Belief::kExists && !id.ok()) Wrong("lost: a segment");
    if (beliefs_[thing] == Belief::kAbsent && id.ok()) Wrong("wrong: a segment was removed and is there again");
    if (beliefs_[thing] == Belief::kMaybe) Note(thing, id.ok() ? Belief::kExists : Belief::kAbsent);
  }

  void CheckThings() {
    for (std::uint64_t file = 0; file < kRamFiles; ++file) LookUpRamFile(file);
    for (std::uint64_t segment = 0; segment < kSegments; ++segment) LookUpSegment(segment);
  }

  void Reconnect() {
    held_.clear();
    client_.reset();
    Connect("");
  }

  void Execute() {
    const std::string token = client_->Token();
    execl("/proc/self/exe", arguments_[0], arguments_[1], arguments_[2], arguments_[3], arguments_[4], arguments_[5],
          arguments_[6], token.c_str(), nullptr);
    Wrong("wrong: exec");
  }

  // Of no other mapping of any client.
  std::uint64_t NextOwner() {
    return (static_cast<std::uint64_t>(getpid()) << 32 | static_cast<std::uint64_t>(random_() & 0xff) << 24) +
           ++serial_;
  }

  char** const arguments_;
  const std::string runtime_dir_, files_dir_;
  const std::uint64_t number_, clients_;
  std::minstd_rand random_;
  const shm::UniqueFd journal_;
  std::vector<Belief> beliefs_;  // ram files, then segments
  std::optional<Client> client_;
  std::vector<Held> held_;
  std::uint64_t serial_ = 0, calls_ = 0;
};

}  // namespace
}  // namespace mapbroker::testing

int main(int argc, char** argv) {
  if (argc < 7) return 2;
  // Users of their own, where they can be: what belongs to one must not be the others'.
  if (geteuid() == 0) {
    const auto user = static_cast<uid_t>(20'000 + std::stoul(argv[4]));
    if (setgid(user) != 0 || setuid(user) != 0) return 2;
  }
  // Never destroyed: a process that ends unmaps nothing by itself.
  (new mapbroker::testing::StormClient(argv))->Run();
}
