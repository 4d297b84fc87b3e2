#include "daemon/session/session_table.h"

#include <signal.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/process.h"
#include "daemon/record.pb.h"
#include "daemon/records.h"
#include "shm_backend/failure_point.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::session {
namespace {

constexpr std::size_t kSecretBytes = 16;  // 128 bits: cannot be guessed

// A token is the session's number, by which it is found, and a secret.
std::string NewToken(std::uint64_t id) {
  std::array<char, sizeof(id) + kSecretBytes> bytes;
  std::memcpy(bytes.data(), &id, sizeof(id));
  // Never short or interrupted for so few bytes once the kernel's generator is seeded, which it waits for.
  if (getrandom(bytes.data() + sizeof(id), kSecretBytes, 0) != kSecretBytes) std::abort();
  return std::string(bytes.data(), bytes.size());
}

// In a time that does not tell how many bytes agree.
bool SameSecret(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace

absl::StatusOr<SessionTable::Opened> SessionTable::Open(const Credentials& peer, bool read_only, nommu::SpaceId space,
                                                        const std::string& nonce, bool replaces) {
  Account* const account = AccountOf(peer.uid);
  absl::StatusOr<Charge> charge =
      replaces ? Charge::Add(account, Resource::kSessions, 1) : Charge::Take(account, Resource::kSessions, 1);
  if (!charge.ok()) return charge.status();
  const std::uint64_t start_time = StartTimeOf(peer.pid);
  shm::MutexLock lock(mutex_);
  const std::uint64_t id = next_id_++;
  const Entry entry{std::make_shared<Session>(id, peer, read_only, space, 0, account, *std::move(charge)), NewToken(id),
                    start_time, nonce};
  const shm::Ledger::Change record = RecordOf(entry);
  if (shm::FailAt(shm::Point::kSessionRecord) || !ledger_.Apply({&record, 1}).ok()) return CannotRecord("the session");
  sessions_[id] = entry;
  return Opened{entry.session, entry.token};
}

shm::Ledger::Change SessionTable::RecordOf(const Entry& entry) {
  const Session& session = *entry.session;
  record::Session record;
  record.set_pid(session.peer().pid);
  record.set_start_time(entry.start_time);
  record.set_uid(session.peer().uid);
  record.set_gid(session.peer().gid);
  for (const gid_t group : session.peer().groups) record.add_groups(group);
  record.set_read_only(session.read_only());
  record.set_traced(session.marked_traced());
  record.set_space(session.space());
  record.set_token(entry.token);
  record.set_ended(entry.ended);
  record.set_nonce(entry.nonce);
  return {kSessions, shm::LedgerKey({session.id()}), record.SerializeAsString()};
}

absl::Status SessionTable::Restore(
    const std::function<absl::Status(const std::shared_ptr<Session>&, std::uint64_t start_time)>& session) {
  return ledger_.ForEach(kSessions, [&](std::string_view key, std::string_view value) -> absl::Status {
    const auto recorded = ParseRecord<record::Session>(value);
    const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
    if (!recorded.ok() || numbers.size() != 1) return Contradiction("a session");
    const Credentials peer{
        recorded->pid(), recorded->uid(), recorded->gid(), {recorded->groups().begin(), recorded->groups().end()}};
    // Numbers of descriptors that are gone must not come to mean others: a call under way may still name them.
    std::uint32_t first_number = 0;
    if (getrandom(&first_number, sizeof(first_number), 0) != sizeof(first_number)) std::abort();
    const Entry entry{
        std::make_shared<Session>(numbers[0], peer, recorded->read_only(), recorded->space(), first_number & INT_MAX,
                                  AccountOf(peer.uid), Charge::Add(AccountOf(peer.uid), Resource::kSessions, 1)),
        recorded->token(), recorded->ended() ? 0 : recorded->start_time(), recorded->nonce(), recorded->ended()};
    entry.session->set_traced(recorded->traced());
    if (entry.token.empty()) entry.session->set_revoked();
    {
      shm::MutexLock lock(mutex_);
      next_id_ = std::max(next_id_, numbers[0] + 1);
      sessions_[numbers[0]] = entry;
      if (!entry.nonce.empty() && !entry.ended && !entry.token.empty()) restored_[entry.nonce] = numbers[0];
    }
    return session(entry.session, entry.start_time);
  });
}

void SessionTable::SetTraced(pid_t pid, bool traced) {
  shm::MutexLock lock(mutex_);
  for (const auto& [id, entry] : sessions_) {
    if (entry.session->peer().pid != pid) continue;
    entry.session->set_traced(traced);
    ledger_.ApplyOrDefer({RecordOf(entry)}).IgnoreError();
  }
}

void SessionTable::Forget(std::uint64_t id) {
  shm::FailAt(shm::Point::kForget);
  const auto all_of = [&](Table table) {
    return shm::Ledger::Change{table, shm::LedgerKey({id, 0}), std::nullopt, shm::LedgerKey({id, UINT64_MAX})};
  };
  {
    shm::MutexLock lock(mutex_);
    --closed_;
  }
  ledger_.ApplyOrDefer({{kSessions, shm::LedgerKey({id})}, all_of(kSessionFiles), all_of(kResults)}).IgnoreError();
}

std::shared_ptr<Session> SessionTable::FindById(std::uint64_t id) const {
  shm::MutexLock lock(mutex_);
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second.session;
}

std::shared_ptr<Session> SessionTable::Find(const std::string& hex_token) const {
  std::uint64_t id;
  if (hex_token.size() != 2 * (sizeof(id) + kSecretBytes)) return nullptr;
  const std::string token = absl::HexStringToBytes(hex_token);
  std::memcpy(&id, token.data(), sizeof(id));
  shm::MutexLock lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end() || !SameSecret(found->second.token, token)) return nullptr;
  return found->second.session;
}

bool SessionTable::HasProcess(pid_t pid) const {
  shm::MutexLock lock(mutex_);
  return std::any_of(sessions_.begin(), sessions_.end(),
                     [&](const auto& entry) { return entry.second.session->peer().pid == pid; });
}

std::optional<SessionTable::Opened> SessionTable::FindByNonce(const Credentials& peer, const std::string& nonce) const {
  shm::MutexLock lock(mutex_);
  const auto id = restored_.find(nonce);
  const auto found = id == restored_.end() ? sessions_.end() : sessions_.find(id->second);
  if (found == sessions_.end() || found->second.session->peer().pid != peer.pid) return std::nullopt;
  return Opened{found->second.session, found->second.token};
}

std::vector<std::shared_ptr<Session>> SessionTable::List(std::uint64_t after, std::size_t most) const {
  std::vector<std::shared_ptr<Session>> listed;
  shm::MutexLock lock(mutex_);
  for (auto at = sessions_.upper_bound(after); at != sessions_.end() && listed.size() < most; ++at) {
    listed.push_back(at->second.session);
  }
  return listed;
}

absl::Status SessionTable::Revoke(std::uint64_t id, bool kill) {
  shm::MutexLock lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) {
    return nommu::Refuse(ESRCH, "", absl::StrCat("there is no session ", id, ": `mapctl session ls` lists them"));
  }
  Entry revoked = found->second;
  revoked.token.clear();
  revoked.nonce.clear();
  const shm::Ledger::Change record = RecordOf(revoked);
  if (!ledger_.Apply({&record, 1}).ok()) return CannotRecord("the session's end");
  restored_.erase(found->second.nonce);
  found->second = revoked;
  revoked.session->set_revoked();
  if (!kill) return absl::OkStatus();
  const pid_t pid = revoked.session->peer().pid;
  const shm::UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  // Gone, or its number is another's by now.
  if (!process || StartTimeOf(pid) != revoked.start_time) return absl::OkStatus();
  if (syscall(SYS_pidfd_send_signal, process.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH) {
    return nommu::Refuse(
        errno, "",
        absl::StrCat("the session has ended, but process ", pid, " cannot be killed: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

void SessionTable::Close(std::uint64_t id) {
  shm::MutexLock lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  // Its mappings go by and by, and if the daemon is killed meanwhile the next goes on with that.
  found->second.ended = true;
  ledger_.ApplyOrDefer({RecordOf(found->second)}).IgnoreError();
  restored_.erase(found->second.nonce);
  sessions_.erase(found);
  ++closed_;
}

std::size_t SessionTable::size() const {
  shm::MutexLock lock(mutex_);
  return sessions_.size() + closed_;
}

}  // namespace mapbroker::session
