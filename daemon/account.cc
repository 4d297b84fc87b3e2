#include "daemon/account.h"

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {
namespace {

using nommu::Refuse;

// What a user may have who is not named, where configuration does not say. Memory and mappings are left to the
// administrator, who knows the pool; the rest is what keeps one user from taking descriptors and threads from all:
// together it costs the daemon at most some 12,000 descriptors a user, of the 524,288 that systemd gives a service.
constexpr std::array<std::uint64_t, kResources> kDefaults = {
    0,     // bytes
    0,     // mappings
    2048,  // sessions
    4096,  // descriptors
    4096,  // connections: two a session
    1024,  // calls: each may hold a thread
    0,     // requests_per_second
};

// The words of a refusal, by Resource: what there is too much of, and what to do.
struct Words {
  int error;
  const char* what;
  const char* instead;
};
constexpr std::array<Words, kResources> kWords = {{
    {ENOMEM, "bytes of the pool", "unmap or remove something"},
    {ENOMEM, "mappings", "unmap something"},
    {EAGAIN, "sessions", "end one"},
    {EMFILE, "open descriptors", "close some"},
    {EAGAIN, "connections", "close one"},
    {EAGAIN, "calls under way", "wait for one"},
    {EAGAIN, "requests a second", "wait a little"},
}};

}  // namespace

std::uint64_t UserLimits::For(std::uint32_t user, Resource resource) const {
  const auto index = static_cast<std::size_t>(resource);
  if (const auto named = of.find(user); named != of.end() && named->second[index]) return *named->second[index];
  if (user == 0 || user == own_user) return 0;
  return each[index].value_or(kDefaults[index]);
}

absl::Status Account::Refusal(Resource resource, std::uint64_t count, std::uint64_t used) const {
  const auto index = static_cast<std::size_t>(resource);
  const Words& words = kWords[index];
  const std::string who = user_ == kNobody ? "the calls without a session" : absl::StrCat("user ", user_);
  return Refuse(words.error, "",
                absl::StrCat(who, " may have ", limit(resource), " ", words.what, " and has ", used,
                             count == 1 ? "" : absl::StrCat(", so ", count, " more are too many"), ": ", words.instead,
                             ", or have the administrator raise limits.", kResourceKeys[index]));
}

absl::Status Account::Take(Resource resource, std::uint64_t count) {
  const std::uint64_t most = limit(resource);
  std::atomic<std::uint64_t>& in_use = Used(resource);
  // Who takes nothing is not refused, however much he has.
  if (most == 0 || count == 0) {
    in_use.fetch_add(count, std::memory_order_relaxed);
    return absl::OkStatus();
  }
  std::uint64_t used = in_use.load(std::memory_order_relaxed);
  do {
    if (used > most || count > most - used) return Refusal(resource, count, used);
  } while (!in_use.compare_exchange_weak(used, used + count, std::memory_order_relaxed));
  return absl::OkStatus();
}

absl::Status Account::TakeRequest(bool gives_back) {
  // No look at the clock where nobody counts.
  if (limit(Resource::kRequests) == 0) return absl::OkStatus();
  return TakeRequestAt(std::chrono::steady_clock::now(), gives_back);
}

// Every request is paid for by its share of a second, up to one second ahead.
absl::Status Account::TakeRequestAt(Time now, bool gives_back) {
  const std::uint64_t rate = limit(Resource::kRequests);
  if (rate == 0) return absl::OkStatus();
  constexpr Time::duration kAhead = std::chrono::seconds(1);
  const Time::rep at = now.time_since_epoch().count(), latest = at + kAhead.count();
  const Time::rep share = std::max<Time::rep>(
      1, kAhead.count() /
             static_cast<Time::rep>(std::min<std::uint64_t>(rate, static_cast<std::uint64_t>(kAhead.count()))));
  Time::rep paid = paid_until_.load(std::memory_order_relaxed), next;
  do {
    next = std::max(paid, at) + share;
    if (next > latest) {
      if (!gives_back) return Refusal(Resource::kRequests, 1, rate);
      next = std::max(paid, latest);
    }
  } while (!paid_until_.compare_exchange_weak(paid, next, std::memory_order_relaxed));
  return absl::OkStatus();
}

absl::StatusOr<Charge> Charge::Take(Account* account, Resource resource, std::uint64_t count) {
  if (account == nullptr) return Charge();
  if (absl::Status status = account->Take(resource, count); !status.ok()) return status;
  return Charge(*account, resource, count);
}

Charge Charge::Add(Account* account, Resource resource, std::uint64_t count) {
  if (account == nullptr) return Charge();
  account->Add(resource, count);
  return Charge(*account, resource, count);
}

void Accounts::Apply(const UserLimits& limits, Account& account) {
  for (std::size_t i = 0; i < kResources; ++i) {
    const auto resource = static_cast<Resource>(i);
    account.SetLimit(resource, limits.For(account.user(), resource));
  }
}

Account& Accounts::Of(std::uint32_t user) {
  shm::MutexLock lock(mutex_);
  std::shared_ptr<Account>& account = accounts_[user];
  if (account == nullptr) {
    account = std::make_shared<Account>(user);
    Apply(limits_, *account);
  }
  return *account;
}

void Accounts::SetLimits(const UserLimits& limits) {
  shm::MutexLock lock(mutex_);
  limits_ = limits;
  for (const auto& [user, account] : accounts_) Apply(limits, *account);
}

}  // namespace mapbroker
