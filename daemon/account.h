// What each user has of the daemon, and how much of it a user may have.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "shm_backend/mutex.h"

namespace mapbroker {

// What is counted (docs/decisions/0018-limits.md says why it is these).
enum class Resource : std::size_t {
  kBytes,        // of the pool: what mappings hold, ram files, segments, devices
  kMappings,     // in all address spaces
  kSessions,     // until all that they had is unmapped
  kDescriptors,  // files that were passed or opened, and not closed
  kConnections,  // on both sockets
  kCalls,        // being carried out
  kRequests,     // a second
};
inline constexpr std::size_t kResources = 7;

// The keys of [limits] that set them, by Resource.
inline constexpr std::array<const char*, kResources> kResourceKeys = {
    "bytes", "mappings", "sessions", "descriptors", "connections", "calls", "requests_per_second"};

// How much a user may have. What is not set has the default; 0 is as much as there is.
struct UserLimits {
  using Row = std::array<std::optional<std::uint64_t>, kResources>;
  Row each;                         // every user but root and the daemon's own, who have no limits by default
  std::map<std::uint32_t, Row> of;  // those who are named, by user
  std::uint32_t own_user = 0;       // the daemon's

  std::uint64_t For(std::uint32_t user, Resource resource) const;
};

// One user's. Thread-safe; taking and giving back are lock-free, since every request does both.
class Account : public std::enable_shared_from_this<Account> {
 public:
  explicit Account(std::uint32_t user) : user_(user) {}
  Account(const Account&) = delete;
  Account& operator=(const Account&) = delete;

  std::uint32_t user() const { return user_; }

  // All of it or, past the limit, nothing: ENOMEM, EAGAIN or EMFILE, as the kernel has for the like.
  absl::Status Take(Resource resource, std::uint64_t count);
  // What there is already, whatever the limit: a lower limit and a restart take nothing away.
  void Add(Resource resource, std::uint64_t count) { Used(resource).fetch_add(count, std::memory_order_relaxed); }
  void Give(Resource resource, std::uint64_t count) { Used(resource).fetch_sub(count, std::memory_order_relaxed); }

  using Time = std::chrono::steady_clock::time_point;
  // One request more. EAGAIN when there were more than a second's worth at once. One that gives something back is
  // counted and never refused.
  absl::Status TakeRequest(bool gives_back = false);
  absl::Status TakeRequestAt(Time now, bool gives_back);

  std::uint64_t used(Resource resource) const { return Slot(resource).used.load(std::memory_order_relaxed); }
  std::uint64_t limit(Resource resource) const { return Slot(resource).most.load(std::memory_order_relaxed); }
  void SetLimit(Resource resource, std::uint64_t most) {
    slots_[static_cast<std::size_t>(resource)].most.store(most, std::memory_order_relaxed);
  }

 private:
  struct Counted {
    std::atomic<std::uint64_t> used = 0;
    std::atomic<std::uint64_t> most = 0;
  };
  const Counted& Slot(Resource resource) const { return slots_[static_cast<std::size_t>(resource)]; }
  std::atomic<std::uint64_t>& Used(Resource resource) { return slots_[static_cast<std::size_t>(resource)].used; }
  absl::Status Refusal(Resource resource, std::uint64_t count, std::uint64_t used) const;

  const std::uint32_t user_;
  std::array<Counted, kResources> slots_;
  std::atomic<Time::rep> paid_until_ = 0;  // when all requests so far will have been paid for
};

// Something taken from an account, given back at the end. Empty where nobody counts. Keeps the account: a descriptor
// may be closed when all else has been taken down.
class Charge {
 public:
  Charge() = default;
  Charge(Charge&& other) noexcept = default;
  Charge& operator=(Charge&& other) noexcept {
    if (this == &other) return *this;
    Reset();
    account_ = std::move(other.account_);
    resource_ = other.resource_;
    count_ = other.count_;
    return *this;
  }
  ~Charge() { Reset(); }

  // `account` may be null: nothing is counted.
  static absl::StatusOr<Charge> Take(Account* account, Resource resource, std::uint64_t count);
  static Charge Add(Account* account, Resource resource, std::uint64_t count);

  // It stays taken: somebody else will give it back.
  void Keep() { account_ = nullptr; }

  void Reset() {
    if (account_ != nullptr) account_->Give(resource_, count_);
    account_ = nullptr;
  }

 private:
  Charge(Account& account, Resource resource, std::uint64_t count)
      : account_(account.shared_from_this()), resource_(resource), count_(count) {}

  std::shared_ptr<Account> account_;
  Resource resource_ = Resource::kBytes;
  std::uint64_t count_ = 0;
};

// Who makes calls that carry no session's token: all of them together, since nobody tells who they are.
inline constexpr std::uint32_t kNobody = UINT32_MAX;

// The accounts of all users that were ever seen. Thread-safe; outlives whatever is counted.
class Accounts {
 public:
  explicit Accounts(const UserLimits& limits = {}) : limits_(limits) {}

  // The same object for as long as the daemon lives.
  Account& Of(std::uint32_t user);
  // Takes nothing away from who has more by now.
  void SetLimits(const UserLimits& limits);

 private:
  static void Apply(const UserLimits& limits, Account& account);

  mutable shm::Mutex mutex_;
  UserLimits limits_ ABSL_GUARDED_BY(mutex_);
  absl::btree_map<std::uint32_t, std::shared_ptr<Account>> accounts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mapbroker
