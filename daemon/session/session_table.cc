#include "daemon/session/session_table.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"

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

SessionTable::Opened SessionTable::Open(const Credentials& peer, bool read_only, nommu::SpaceId space) {
  shm::MutexLock lock(mutex_);
  const std::uint64_t id = next_id_++;
  Entry& entry = sessions_[id];
  entry.session = std::make_shared<Session>(id, peer, read_only, space);
  entry.token = NewToken(id);
  return Opened{entry.session, entry.token};
}

void SessionTable::Restore(const std::shared_ptr<Session>& session, const std::string& token) {
  shm::MutexLock lock(mutex_);
  next_id_ = std::max(next_id_, session->id() + 1);
  sessions_[session->id()] = Entry{session, token};
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

std::vector<std::shared_ptr<Session>> SessionTable::OfProcess(pid_t pid) const {
  std::vector<std::shared_ptr<Session>> found;
  shm::MutexLock lock(mutex_);
  for (const auto& [id, entry] : sessions_) {
    if (entry.session->peer().pid == pid) found.push_back(entry.session);
  }
  return found;
}

void SessionTable::Close(std::uint64_t id) {
  shm::MutexLock lock(mutex_);
  sessions_.erase(id);
}

std::size_t SessionTable::size() const {
  shm::MutexLock lock(mutex_);
  return sessions_.size();
}

}  // namespace mapbroker::session
