// Every call that comes in over gRPC: counted and timed, and told if it is refused.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "daemon/events.h"
#include "daemon/session/session_table.h"

namespace mapbroker::rpc {

// What is known of one method's calls. Counts are since the start of the daemon.
class CallStatistics {
 public:
  // Upper bounds of the latencies' buckets, in microseconds, each twice the one before: from half a decision that
  // shares to a fill of a large file; the last bucket has none.
  static constexpr std::array<std::uint64_t, 20> kBounds{
      1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288};
  // Errno numbers end before it; what is none is EIO.
  static constexpr int kErrnos = 134;

  void Add(int error, std::chrono::nanoseconds latency) {
    results_[static_cast<std::size_t>(error >= 0 && error < kErrnos ? error : EIO)].fetch_add(
        1, std::memory_order_relaxed);
    const auto nanoseconds = static_cast<std::uint64_t>(latency.count());
    std::size_t bucket = 0;
    while (bucket < kBounds.size() && nanoseconds > kBounds[bucket] * 1000) ++bucket;
    buckets_[bucket].fetch_add(1, std::memory_order_relaxed);
    nanoseconds_.fetch_add(nanoseconds, std::memory_order_relaxed);
  }

  // How many were answered so; 0: without an error.
  std::uint64_t results(int error) const {
    return results_[static_cast<std::size_t>(error)].load(std::memory_order_relaxed);
  }
  // How many took longer than the bound before and no longer than this.
  std::uint64_t bucket(std::size_t at) const { return buckets_[at].load(std::memory_order_relaxed); }
  std::chrono::nanoseconds total() const {
    return std::chrono::nanoseconds(nanoseconds_.load(std::memory_order_relaxed));
  }

 private:
  std::array<std::atomic<std::uint64_t>, kErrnos> results_{};
  std::array<std::atomic<std::uint64_t>, kBounds.size() + 1> buckets_{};
  std::atomic<std::uint64_t> nanoseconds_ = 0;
};

// Thread-safe.
class Calls {
 public:
  // Both outlive it.
  Calls(Events& events, const session::SessionTable& sessions);

  // For one gRPC server; the Calls outlive it.
  std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewInterceptorFactory();

  // Calls being carried out, streams too.
  std::size_t under_way() const { return under_way_.load(std::memory_order_relaxed); }

  // Calls `method` with every method that answers once, "Memory/Mmap", by name.
  void ForEach(const std::function<void(const std::string& name, const CallStatistics&)>& method) const;

 private:
  class Factory;
  class Interceptor;

  Events& events_;
  const session::SessionTable& sessions_;
  std::atomic<std::size_t> under_way_ = 0;
  absl::flat_hash_map<std::string, std::unique_ptr<CallStatistics>> methods_;  // by gRPC's name; never changed
};

}  // namespace mapbroker::rpc
