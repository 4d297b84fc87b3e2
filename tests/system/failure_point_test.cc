// Every failure point: the daemon fails there, and dies there, and nothing is lost, left over or given out twice.
//
// One tour makes every kind of call and meets every point; it is gone on for each point, from
// shm_backend/failure_point.h.
#include "shm_backend/failure_point.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ipc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "mapbroker/client.h"
#include "mapbroker/error.h"
#include "shm_backend/mutex.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::shm {

void PrintTo(const PointInfo& info, std::ostream* out) { *out << info.name; }

}  // namespace mapbroker::shm

namespace mapbroker::testing {
namespace {

using shm::Point;
using shm::PointInfo;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kPool = std::uint64_t{4} << 20;
constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

// A daemon that is started again, without failure points, whenever it has ended.
class Keeper {
 public:
  explicit Keeper(const TempDir& home) : home_(home) {
    const std::string contents = home.WriteFile("contents", "declared");
    config_ = home.WriteFile("config", "[[ram_file]]\nname = \"ram:/declared\"\ncontents = \"" + contents + "\"\n");
    Arm("");
  }
  ~Keeper() { Stop(); }

  std::string runtime_dir() const { return home_.Path("run"); }

  // What is armed is armed until the daemon has ended.
  void Arm(const std::string& line) {
    std::ofstream(home_.Path("points.new")) << line << (line.empty() ? "" : "\n");
    std::filesystem::rename(home_.Path("points.new"), home_.Path("points"));
  }

  // Starts it, a second time if it refuses.
  void Start() {
    shm::MutexLock lock(mutex_);
    StartLocked();
  }
  // Starts it again when it dies, until Stop.
  void Watch() {
    watch_ = true;
    watcher_ = std::thread([this] {
      while (watch_) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        shm::MutexLock lock(mutex_);
        if (daemon_->Running()) continue;
        Bury();
        StartLocked();
      }
    });
  }
  void Kill() {
    shm::MutexLock lock(mutex_);
    if (daemon_->Running()) {
      log_ += daemon_->Log();
      daemon_->Kill();
      daemon_.reset();
      StartLocked();
    }
  }
  // For good, twice if it dies of it.
  void Stop() {
    watch_ = false;
    if (watcher_.joinable()) watcher_.join();
    shm::MutexLock lock(mutex_);
    if (daemon_ == nullptr) return;
    daemon_->Signal(SIGTERM);
    if (daemon_->AwaitEnd() == 128 + SIGKILL) {
      log_ += daemon_->Log();
      daemon_.reset();
      Arm("");
      StartLocked();
      daemon_->Signal(SIGTERM);
      EXPECT_EQ(daemon_->AwaitEnd(), 0) << daemon_->Log();
    }
    log_ += daemon_->Log();
    daemon_.reset();
  }

  // Of all of them.
  std::string Log() {
    shm::MutexLock lock(mutex_);
    return log_ + (daemon_ == nullptr ? "" : daemon_->Log());
  }
  int refused_starts() const { return refused_starts_; }

 private:
  void Bury() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    log_ += daemon_->Log();
    EXPECT_EQ(daemon_->AwaitEnd(), 128 + SIGKILL) << log_;
    daemon_.reset();
    Arm("");
  }
  void StartLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    // By name, so that it is there too when nobody has it in his hands.
    const std::vector<std::string> options{
        "--pool-size", std::to_string(kPool), "--pool", "file:" + home_.Path("pool"), "--config", config_};
    try {
      daemon_ = std::make_unique<Daemon>(options, runtime_dir(), home_.Path("points"));
      return;
    } catch (const std::exception& refused) {
      log_ += refused.what();
      ++refused_starts_;
      Arm("");
    }
    daemon_ = std::make_unique<Daemon>(options, runtime_dir(), home_.Path("points"));
  }

  const TempDir& home_;
  std::string config_;
  shm::Mutex mutex_;
  std::unique_ptr<Daemon> daemon_ ABSL_GUARDED_BY(mutex_);
  std::string log_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int> refused_starts_ = 0;
  std::atomic<bool> watch_ = false;
  std::thread watcher_;
};

// When a failure is armed.
enum class When { kStart, kServing, kRestart };

class EachPoint : public ::testing::TestWithParam<PointInfo> {
 protected:
  // Goes on it with this armed. What was refused is in refusals_.
  void Tour(const std::string& failure, When when);

  absl::StatusOr<Client> Connect(ConnectOptions options = {}) {
    options.runtime_dir = keeper_.runtime_dir();
    options.reconnect_timeout = std::chrono::duration_cast<std::chrono::milliseconds>(kDeadline);
    absl::StatusOr<Client> client = Client::Connect(options);
    // Whoever is refused or finds nobody tries again, as a user would.
    for (int attempt = 0; !client.ok() && attempt < 1000; ++attempt) {
      if (!absl::IsUnavailable(client.status())) Note(client.status());
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      client = Client::Connect(options);
    }
    return client;
  }
  // Keeps what was refused, of which the caller's part is that nothing has come of it. True: it was not.
  bool Note(const absl::Status& status) {
    if (!status.ok()) refusals_.push_back(status);
    return status.ok();
  }

  // What is mapped must hold, and what it should hold.
  struct Held {
    Mapping mapping;
    std::byte fill;
  };
  // Maps, asserts that the memory is fresh, and fills it.
  void Take(Client& client, const MapOptions& options) {
    absl::StatusOr<Mapping> mapping = client.Map(options);
    if (!Note(mapping.status())) return;
    for (const std::byte byte : mapping->bytes()) ASSERT_EQ(byte, std::byte{0}) << "a residue";
    const auto fill = static_cast<std::byte>(++last_fill_);
    std::fill(mapping->bytes().begin(), mapping->bytes().end(), fill);
    held_.push_back({*std::move(mapping), fill});
  }
  void Leave(std::size_t at) {
    if (at >= held_.size()) return;
    CheckBytes(held_[at]);
    // A mapping whose Unmap is refused would be lost with the object; Munmap is never refused.
    EXPECT_TRUE(held_[at].mapping.Unmap().ok());
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  static void CheckBytes(const Held& held) {
    for (const std::byte byte : held.mapping.bytes()) ASSERT_EQ(byte, held.fill) << "somebody else's";
  }
  void MapFiles(Client& client);
  void UseRamFiles(Client& client);
  void UseSegments(Client& client);
  void EndSessions();
  void CheckWhatIsHeld(Client& client);
  void CheckTheEnd(Client& client);

  const TempDir home_;
  Keeper keeper_{home_};
  const std::string file_ = home_.MakeFile("file", 3 * kPage + 100);
  std::vector<absl::Status> refusals_;
  std::vector<Held> held_;
  unsigned last_fill_ = 0;
};

void EachPoint::MapFiles(Client& client) {
  const Bytes contents = ReadFile(file_);
  const shm::UniqueFd fd(open(file_.c_str(), O_RDONLY | O_CLOEXEC));
  absl::StatusOr<Mapping> shared = client.Map({.length = 4 * kPage, .fd = fd.get()});
  absl::StatusOr<Mapping> own = client.Map({.length = 3 * kPage, .prot = kReadWrite, .fd = fd.get()});
  for (absl::StatusOr<Mapping>* mapping : {&shared, &own}) {
    if (!Note(mapping->status())) continue;
    Bytes expected = contents;
    expected.resize((*mapping)->bytes().size());
    const Bytes found(
        std::string(reinterpret_cast<const char*>((*mapping)->bytes().data()), (*mapping)->bytes().size()));
    ASSERT_EQ(found, expected);
  }
}

void EachPoint::UseRamFiles(Client& client) {
  const std::string name = absl::StrCat("ram:/tour-", ++last_fill_);
  absl::StatusOr<File> file = client.Open(name, O_RDWR | O_CREAT);
  if (!Note(file.status())) {
    file = client.Open(name, O_RDWR | O_CREAT);
    if (!Note(file.status())) return;
  }
  const std::string text(3 * kPage, 'x');
  bool written = Note(file->Ftruncate(3 * kPage));
  written = Note(file->Pwrite(std::as_bytes(std::span(text)), 0)) && written;
  if (written) {
    absl::StatusOr<Mapping> mapping =
        client.Map({.length = 3 * kPage, .prot = kReadWrite, .flags = MAP_SHARED, .file = &*file});
    if (Note(mapping.status())) {
      for (const std::byte byte : mapping->bytes()) ASSERT_EQ(byte, std::byte{'x'});
    }
  }
  // Cut in the middle of a page, and grown again: what was cut off is zeros.
  if (written && Note(file->Ftruncate(kPage + 1)) && Note(file->Ftruncate(2 * kPage))) {
    std::string read(2 * kPage, '?');
    const absl::StatusOr<std::size_t> count = file->Pread(std::as_writable_bytes(std::span(read)), 0);
    if (Note(count.status())) {
      EXPECT_EQ(Bytes(read), Bytes(std::string(kPage + 1, 'x') + std::string(kPage - 1, '\0')));
    }
  }
  // Whether a call that was under way was carried out may not be known.
  for (int attempt = 0; attempt < 3; ++attempt) {
    const absl::Status gone = client.Unlink(name);
    if (ErrnoOf(gone) == ENOENT || Note(gone)) break;
  }
  EXPECT_EQ(ErrnoOf(client.Stat(name).status()), ENOENT);
}

void EachPoint::UseSegments(Client& client) {
  const int key = static_cast<int>(++last_fill_);
  for (int attempt = 0; attempt < 3; ++attempt) {
    const absl::StatusOr<int> id = client.Shmget(key, 2 * kPage, IPC_CREAT | 0600);
    if (!Note(id.status())) continue;
    absl::StatusOr<Mapping> attached = client.Shmat(*id);
    if (Note(attached.status())) {
      for (const std::byte byte : attached->bytes()) ASSERT_EQ(byte, std::byte{0}) << "a residue";
    }
    const absl::Status removed = client.ShmRemove(*id);
    if (!Note(removed) && ErrnoOf(client.ShmStat(*id).status()) != EINVAL) Note(client.ShmRemove(*id));
    if (attached.ok()) {
      std::fill(attached->bytes().begin(), attached->bytes().end(), std::byte{'s'});
      EXPECT_TRUE(attached->Unmap().ok());
    }
    break;
  }
  EXPECT_EQ(ErrnoOf(client.Shmget(key, 2 * kPage, 0600).status()), ENOENT);
}

// One says goodbye, one executes a program, one is killed.
void EachPoint::EndSessions() {
  {
    absl::StatusOr<Client> client = Connect();
    ASSERT_TRUE(client.ok()) << client.status();
    Note(client->Map({.length = kPage, .flags = kAnonymous}).status());
  }
  {
    // What an exec leaves is never taken down.
    static auto& clients = *new std::deque<Client>;
    static auto& mappings = *new std::deque<Mapping>;
    absl::StatusOr<Client> connected = Connect();
    ASSERT_TRUE(connected.ok()) << connected.status();
    Client& before = clients.emplace_back(*std::move(connected));
    absl::StatusOr<Mapping> mapping = before.Map({.length = kPage, .flags = kAnonymous});
    if (Note(mapping.status())) mappings.push_back(*std::move(mapping));
    absl::StatusOr<Client> after = Connect({.token = before.Token(), .executed = true});
    ASSERT_TRUE(after.ok()) << after.status();
  }
  std::optional<Peer> peer;
  for (int attempt = 0; !peer; ++attempt) {
    ASSERT_LT(attempt, 20);
    absl::StatusOr<Client> probe = Connect();
    ASSERT_TRUE(probe.ok());
    if (probe->Statistics().ok()) peer.emplace(keeper_.runtime_dir());
  }
  peer->Map("", {.length = 3 * kPage, .prot = kReadWrite, .flags = kAnonymous});
  peer->Kill();
}

void EachPoint::CheckWhatIsHeld(Client& client) {
  std::multimap<std::uint64_t, std::uint64_t> held, listed;
  for (const Held& one : held_) {
    CheckBytes(one);
    held.emplace(one.mapping.address(), one.mapping.length());
  }
  const auto list = [&] {
    listed.clear();
    return client.ListMappings(getpid(), [&](const MappingRow& row) {
      listed.emplace(row.start, row.end - row.start);
      return true;
    });
  };
  // Sessions end by and by.
  WaitUntil("what is listed is what is held", [&] { return list().ok() && listed == held; });
  EXPECT_EQ(listed, held);
}

void EachPoint::CheckTheEnd(Client& client) {
  while (!held_.empty()) Leave(0);
  WaitUntil("only one session is left", [&] { return client.Statistics()->sessions == 1; });
  std::vector<std::string> names;
  ASSERT_TRUE(client.ListFiles("", [&](const FileStat& file) { return names.push_back(file.name), true; }).ok());
  EXPECT_THAT(names, ::testing::ElementsAre("ram:/declared"));
  const std::uint64_t declared = kPage;
  WaitUntil("all but what was declared is free", [&] {
    const PoolStatistics now = *client.Statistics();
    return now.used == declared && now.scrubbing == 0;
  });
  EXPECT_EQ(client.Statistics()->used, declared);
  EXPECT_EQ(client.Statistics()->mappings, 0u);
  // All of it can be had, run by run, since what was declared lies anywhere, and none of it holds what others wrote.
  EXPECT_EQ(client.Statistics()->free, kPool - declared);
  std::vector<Mapping> rest;
  for (PoolStatistics now = *client.Statistics(); now.free > 0; now = *client.Statistics()) {
    absl::StatusOr<Mapping> run = client.Map({.length = now.largest_free_run, .prot = PROT_READ, .flags = kAnonymous});
    ASSERT_TRUE(run.ok()) << run.status();
    EXPECT_TRUE(std::all_of(run->bytes().begin(), run->bytes().end(), [](std::byte byte) {
      return byte == std::byte{0};
    })) << "a residue";
    rest.push_back(*std::move(run));
  }
}

void EachPoint::Tour(const std::string& failure, When when) {
  if (when == When::kStart) keeper_.Arm(failure);
  keeper_.Start();
  keeper_.Watch();
  // Has the pool in its hands, whatever becomes of the others.
  absl::StatusOr<Client> observer = Connect();
  ASSERT_TRUE(observer.ok()) << observer.status();
  for (const bool restarted : {false, true}) {
    // The daemon that is started next would count anew.
    if (restarted) keeper_.Arm("");
    if (when == (restarted ? When::kRestart : When::kServing)) keeper_.Arm(failure);
    if (restarted) keeper_.Kill();
    absl::StatusOr<Client> client = Connect();
    ASSERT_TRUE(client.ok()) << client.status();
    Take(*client, {.length = 5 * kPage, .prot = kReadWrite, .flags = kAnonymous});
    Take(*client, {.length = 100, .prot = kReadWrite, .flags = kAnonymous});
    Take(*client, {.length = 200, .prot = kReadWrite, .flags = kAnonymous});
    Take(*client, {.length = 100, .prot = kReadWrite, .flags = kAnonymous});
    Leave(1);
    Leave(0);
    Take(*client, {.length = 3 * kPage, .prot = kReadWrite, .flags = kAnonymous});
    Take(*client, {.length = 100, .prot = kReadWrite, .flags = kAnonymous});
    if (!held_.empty() && held_[0].mapping.length() > kPage) Note(held_[0].mapping.Resize(kPage));
    MapFiles(*client);
    UseRamFiles(*client);
    UseSegments(*client);
    EndSessions();
    CheckWhatIsHeld(*observer);
  }
  keeper_.Arm("");
  CheckTheEnd(*observer);
}

std::string NameOf(const ::testing::TestParamInfo<PointInfo>& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

// When a point is met that is met only then.
When WhenOf(Point point) {
  switch (point) {
    case Point::kSegmentCreate:
    case Point::kPrefault:
      return When::kStart;
    case Point::kSegmentAdopt:
    case Point::kLedgerOpen:
    case Point::kLedgerRead:
    case Point::kLogOpen:
    case Point::kRestoreFiles:
    case Point::kRestoreSessions:
    case Point::kRestoreMappings:
    case Point::kRestored:
    case Point::kDeclare:
      return When::kRestart;
    default:
      return When::kServing;
  }
}

class TheDaemonIsKilled : public EachPoint {};

TEST_P(TheDaemonIsKilled, AndNothingIsLostLeftOverOrGivenOutTwice) {
  const PointInfo& point = GetParam();
  const bool at_stop = point.point == Point::kFarewell || point.point == Point::kGiveUp;
  const std::string failure = absl::StrCat(point.name, "=kill:1");
  Tour(at_stop ? "" : failure, WhenOf(point.point));
  for (const absl::Status& refusal : refusals_) {
    // It was under way, and whether it was carried out is not known.
    EXPECT_EQ(ErrnoOf(refusal), ECONNRESET) << refusal;
  }
  {
    absl::StatusOr<Client> client = Connect();
    ASSERT_TRUE(client.ok());
    if (at_stop) keeper_.Arm(failure);
    keeper_.Stop();
  }
  EXPECT_THAT(keeper_.Log(), ::testing::HasSubstr(absl::StrCat("failure point ", point.name, ": kill")));
  EXPECT_TRUE(std::filesystem::is_empty(keeper_.runtime_dir())) << "left behind";
  EXPECT_FALSE(std::filesystem::exists(home_.Path("pool"))) << "left behind";
}

INSTANTIATE_TEST_SUITE_P(At, TheDaemonIsKilled, ::testing::ValuesIn(shm::kPoints), NameOf);

// What is told to whom when a step fails.
struct Failure {
  Point point;
  const char* what;
  When when;
  int told = 0;          // the errno that a caller is told, 0: nobody is told anything
  bool refused = false;  // the daemon does not start
  const char* sentence = "";
};

constexpr Failure kFailures[] = {
    {Point::kSegmentCreate, "ENOMEM", When::kStart, 0, true, "cannot make the pool"},
    {Point::kSegmentAdopt, "EIO", When::kRestart, 0, true, "cannot look at the old pool"},
    {Point::kClientDescriptor, "EMFILE:1", When::kServing, EMFILE, false, "cannot open the pool"},
    {Point::kAllocate, "ENOMEM:1", When::kServing, ENOMEM, false, "unmap something"},
    {Point::kAllocateSmall, "ENOMEM:1", When::kServing, ENOMEM, false, "unmap something"},
    {Point::kPrefault, "EFAULT", When::kStart},
    {Point::kLedgerOpen, "EACCES", When::kRestart, 0, true, "Permission denied"},
    {Point::kLedgerBegin, "ENOMEM:1", When::kServing},
    {Point::kLedgerPut, "ENOSPC:1", When::kServing},
    {Point::kLedgerCommit, "ENOSPC:1", When::kServing},
    {Point::kLedgerRead, "EIO:3", When::kRestart, 0, true, "ledger"},
    {Point::kLogOpen, "ENOSPC", When::kRestart, 0, true, "No space left"},
    {Point::kLogAppend, "ENOSPC:5", When::kServing, ENOSPC, false, "make room in the runtime directory"},
    {Point::kFileOpen, "EIO:1", When::kServing, EBADF, false, "no such open file"},
    {Point::kFileRead, "EIO:1", When::kServing, EIO, false, "Input/output error"},
    {Point::kFill, "EIO:1", When::kServing, EIO, false, "Input/output error"},
    {Point::kAccept, "EMFILE:1", When::kServing},
    {Point::kReceive, "ECONNRESET:1", When::kServing},
    {Point::kPidfd, "EMFILE:1", When::kServing, ESRCH, false, "Too many open files"},
    {Point::kSessionRecord, "ENOSPC:1", When::kServing, ENOSPC, false, "make room in the runtime directory"},
    {Point::kWatch, "ENOMEM:1", When::kServing, ENOMEM, false, "cannot be watched"},
    {Point::kSend, "EAGAIN:1", When::kServing},
    {Point::kDeclare, "ENOMEM", When::kRestart, 0, true, "config"},
};

class TheStepFails : public EachPoint {};

TEST_P(TheStepFails, AndWhoAskedIsToldWhyOrGoesOn) {
  const auto* const failure = std::find_if(std::begin(kFailures), std::end(kFailures),
                                           [](const Failure& one) { return one.point == GetParam().point; });
  ASSERT_NE(failure, std::end(kFailures)) << "say in kFailures what becomes of it";
  Tour(absl::StrCat(GetParam().name, "=", failure->what), failure->when);
  for (const absl::Status& refusal : refusals_) {
    EXPECT_EQ(ErrnoOf(refusal), failure->told) << refusal;
    EXPECT_THAT(std::string(refusal.message()), ::testing::HasSubstr(failure->sentence));
  }
  EXPECT_EQ(refusals_.empty(), failure->told == 0);
  EXPECT_EQ(keeper_.refused_starts(), failure->refused ? 1 : 0);
  keeper_.Stop();
  const std::string log = keeper_.Log();
  EXPECT_THAT(log, ::testing::HasSubstr(absl::StrCat("failure point ", GetParam().name, ": ")));
  if (failure->refused) {
    EXPECT_THAT(log, ::testing::HasSubstr(failure->sentence));
  }
}

std::vector<PointInfo> ThoseThatCanFail() {
  std::vector<PointInfo> points;
  std::copy_if(shm::kPoints.begin(), shm::kPoints.end(), std::back_inserter(points),
               [](const PointInfo& point) { return point.can_fail; });
  return points;
}

INSTANTIATE_TEST_SUITE_P(At, TheStepFails, ::testing::ValuesIn(ThoseThatCanFail()), NameOf);

}  // namespace
}  // namespace mapbroker::testing
