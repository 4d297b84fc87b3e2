#include "daemon/session/session.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/backing/closer.h"
#include "daemon/backing/host_file.h"
#include "daemon/nommu/refusal.h"
#include "daemon/process.h"

namespace mapbroker::session {

Session::PassedFile::~PassedFile() {
  if (fd) backing::CloseElsewhere(std::move(fd), user, std::move(charge));
}

bool Session::IsTraced() {
  if (traced_) return true;
  const auto now = std::chrono::steady_clock::now();
  if (now >= look_again_.load(std::memory_order_relaxed)) {
    seen_traced_ = mapbroker::IsTraced(peer_.pid);
    look_again_ = now + std::chrono::milliseconds(10);
  }
  return seen_traced_;
}

bool Session::BeginRequest(std::uint64_t id) {
  shm::MutexLock lock(mutex_);
  return running_.insert(id).second;
}

void Session::EndRequest(std::uint64_t id) {
  shm::MutexLock lock(mutex_);
  running_.erase(id);
}

void Session::NoteResult(std::uint64_t id) {
  shm::MutexLock lock(mutex_);
  results_.insert(id);
}

std::vector<std::uint64_t> Session::TakeResultsBelow(std::uint64_t done) {
  shm::MutexLock lock(mutex_);
  const auto end = results_.lower_bound(done);
  std::vector<std::uint64_t> taken(results_.begin(), end);
  results_.erase(results_.begin(), end);
  return taken;
}

absl::StatusOr<int> Session::AddFile(shm::UniqueFd fd) {
  auto file = std::make_shared<PassedFile>();
  file->user = peer_.uid;
  file->fd = std::move(fd);
  return Add(std::move(file));
}

absl::StatusOr<int> Session::AddFile(std::shared_ptr<backing::Backing> backing) {
  auto file = std::make_shared<PassedFile>();
  file->backing = std::move(backing);
  return Add(std::move(file));
}

absl::StatusOr<int> Session::Add(std::shared_ptr<PassedFile> file) {
  absl::StatusOr<Charge> charge = Charge::Take(account_, Resource::kDescriptors, 1);
  if (!charge.ok()) return charge.status();
  file->charge = *std::move(charge);
  shm::MutexLock lock(mutex_);
  if (files_.size() >= kMaxFilesPerSession) {
    return nommu::Refuse(
        EMFILE, "",
        absl::StrCat("the session has ", kMaxFilesPerSession, " open descriptors: close some of them first"));
  }
  int number;
  do {
    number = static_cast<int>(next_number_++ & INT_MAX);
  } while (!files_.emplace(number, file).second);
  return number;
}

void Session::TakeFiles(Session& from) {
  absl::flat_hash_map<int, std::shared_ptr<PassedFile>> files;
  std::uint32_t next_number;
  {
    shm::MutexLock lock(from.mutex_);
    files.swap(from.files_);
    next_number = from.next_number_;
  }
  shm::MutexLock lock(mutex_);
  files_ = std::move(files);
  next_number_ = next_number;
}

std::size_t Session::CountFiles() {
  shm::MutexLock lock(mutex_);
  return files_.size();
}

std::vector<std::pair<int, std::shared_ptr<backing::Backing>>> Session::OpenedFiles() {
  std::vector<std::pair<int, std::shared_ptr<backing::Backing>>> files;
  shm::MutexLock lock(mutex_);
  for (const auto& [number, file] : files_) {
    if (file->backing != nullptr) files.emplace_back(number, file->backing);
  }
  return files;
}

void Session::RestoreFile(int number, std::shared_ptr<backing::Backing> backing) {
  auto file = std::make_shared<PassedFile>();
  file->backing = std::move(backing);
  file->charge = Charge::Add(account_, Resource::kDescriptors, 1);
  shm::MutexLock lock(mutex_);
  files_[number] = std::move(file);
  next_number_ = std::max(next_number_, static_cast<std::uint32_t>(number) + 1);
}

absl::Status Session::CloseFile(int number) {
  shm::MutexLock lock(mutex_);
  if (files_.erase(number) == 0) {
    return nommu::Refuse(EBADF, "", absl::StrCat("the session has passed no descriptor of number ", number));
  }
  return absl::OkStatus();
}

std::shared_ptr<backing::Backing> Session::File(int number) {
  std::shared_ptr<PassedFile> file;
  {
    shm::MutexLock lock(mutex_);
    const auto at = files_.find(number);
    if (at == files_.end()) return nullptr;
    file = at->second;
  }
  std::call_once(file->looked_at, [&] {
    if (!file->fd) return;
    auto backing = backing::OpenHostFile(std::move(file->fd), file->user, std::move(file->charge));
    if (backing.ok()) file->backing = *std::move(backing);
  });
  return file->backing;
}

}  // namespace mapbroker::session
