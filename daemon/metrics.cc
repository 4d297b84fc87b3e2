#include "daemon/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "daemon/version.h"

namespace mapbroker {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

ClientMetric Metric(Labels labels) {
  ClientMetric metric;
  metric.label = std::move(labels);
  return metric;
}

class Numbers final : public prometheus::Collectable {
 public:
  Numbers(const Broker& broker, const session::SessionTable& sessions, const shm::Ledger& ledger, const Events& events,
          const rpc::Calls& calls)
      : broker_(broker), sessions_(sessions), ledger_(ledger), events_(events), calls_(calls) {}

  std::vector<MetricFamily> Collect() const override {
    std::vector<MetricFamily> families;
    CollectDaemon(families);
    CollectPool(families);
    CollectLedger(families);
    CollectEvents(families);
    CollectCalls(families);
    return families;
  }

 private:
  static MetricFamily& Family(std::vector<MetricFamily>& families, const char* name, const char* help,
                              MetricType type) {
    return families.emplace_back(MetricFamily{absl::StrCat("mapbroker_", name), help, type, {}});
  }
  static void AddTo(MetricFamily& family, Labels labels, double value) {
    ClientMetric& metric = family.metric.emplace_back(Metric(std::move(labels)));
    (family.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  }
  static void Gauge(std::vector<MetricFamily>& families, const char* name, const char* help, std::uint64_t value) {
    AddTo(Family(families, name, help, MetricType::Gauge), {}, static_cast<double>(value));
  }
  static void Counter(std::vector<MetricFamily>& families, const char* name, const char* help, std::uint64_t value) {
    AddTo(Family(families, name, help, MetricType::Counter), {}, static_cast<double>(value));
  }

  void CollectDaemon(std::vector<MetricFamily>& families) const {
    AddTo(Family(families, "info", "Which daemon this is.", MetricType::Gauge),
          {{"version", kVersion}, {"profile", broker_.profile().name}}, 1);
    const auto since_epoch = started_.time_since_epoch();
    AddTo(Family(families, "start_time_seconds", "When it was started, since the epoch.", MetricType::Gauge), {},
          std::chrono::duration<double>(since_epoch).count());
    Gauge(families, "sessions", "Sessions.", sessions_.size());
  }

  void CollectPool(std::vector<MetricFamily>& families) const {
    const Statistics now = broker_.GetStatistics();
    MetricFamily& pool = Family(families, "pool_bytes", "Bytes of the pool by what they are.", MetricType::Gauge);
    AddTo(pool, {{"state", "used"}}, static_cast<double>(now.pool.total - now.pool.free - now.pool.scrubbing));
    AddTo(pool, {{"state", "free"}}, static_cast<double>(now.pool.free));
    AddTo(pool, {{"state", "scrubbing"}}, static_cast<double>(now.pool.scrubbing));
    Gauge(families, "pool_largest_free_run_bytes", "The largest run that can be given out.", now.pool.largest_free_run);
    Gauge(families, "pool_prefaulted_bytes", "Bytes of the pool that are known to be resident.", now.pool.prefaulted);
    const std::uint64_t mapped = now.map.mapped_pages, held = now.map.region_pages;
    Gauge(families, "saved_by_sharing_bytes", "Bytes that would be needed in addition if nothing were shared.",
          mapped > held ? (mapped - held) * nommu::kPageSize : 0);
    Gauge(families, "regions", "Regions.", now.map.regions);
    Gauge(families, "mappings", "Mappings of all address spaces.", now.map.mappings);
    Gauge(families, "filling", "Regions that are being filled now.", now.filling);
    Counter(families, "fills_total", "Reads of a file's range into a region that were begun.", now.fills_total);
  }

  void CollectLedger(std::vector<MetricFamily>& families) const {
    const auto now = ledger_.GetStatistics();
    Gauge(families, "ledger_failing", "Whether the ledger cannot be written or read.", !now.ok() || now->failing);
    if (!now.ok()) return;
    Gauge(families, "ledger_records", "Records in the ledger's file.", now->records);
    Gauge(families, "ledger_bytes", "Bytes of the ledger's file that are in use.", now->bytes);
    Gauge(families, "ledger_waiting_changes", "Changes in the log that are not in the file yet.", now->waiting);
    Gauge(families, "ledger_deferred_changes", "Changes that could not be recorded yet.", now->deferred);
  }

  void CollectEvents(std::vector<MetricFamily>& families) const {
    MetricFamily& told = Family(families, "events_total", "What happened, by kind.", MetricType::Counter);
    for (std::size_t kind = 0; kind < kEventKinds; ++kind) {
      const auto at = static_cast<EventKind>(kind);
      AddTo(told, {{"kind", NameOf(at)}}, static_cast<double>(events_.told(at)));
    }
    Counter(families, "events_lost_total", "Events that watchers did not take in time.", events_.lost());
    Gauge(families, "watchers", "Those who watch events.", events_.watchers());
  }

  void CollectCalls(std::vector<MetricFamily>& families) const {
    MetricFamily results{
        "mapbroker_calls_total", "Calls by method and by errno, OK for none.", MetricType::Counter, {}};
    MetricFamily latencies{"mapbroker_call_duration_seconds",
                           "From when a call has come in to its answer, without the way there and back.",
                           MetricType::Histogram,
                           {}};
    calls_.ForEach([&](const std::string& name, const rpc::CallStatistics& calls) {
      for (int error = 0; error < rpc::CallStatistics::kErrnos; ++error) {
        if (calls.results(error) == 0) continue;
        const char* const errno_name = error == 0 ? "OK" : strerrorname_np(error);
        AddTo(results, {{"method", name}, {"result", errno_name == nullptr ? absl::StrCat(error) : errno_name}},
              static_cast<double>(calls.results(error)));
      }
      ClientMetric& latency = latencies.metric.emplace_back(Metric({{"method", name}}));
      std::uint64_t count = 0;
      constexpr auto& kBounds = rpc::CallStatistics::kBounds;
      for (std::size_t at = 0; at <= kBounds.size(); ++at) {
        count += calls.bucket(at);
        const double bound =
            at < kBounds.size() ? static_cast<double>(kBounds[at]) * 1e-6 : std::numeric_limits<double>::infinity();
        latency.histogram.bucket.push_back({count, bound});
      }
      latency.histogram.sample_count = count;
      latency.histogram.sample_sum = std::chrono::duration<double>(calls.total()).count();
    });
    families.push_back(std::move(results));
    families.push_back(std::move(latencies));
  }

  const Broker& broker_;
  const session::SessionTable& sessions_;
  const shm::Ledger& ledger_;
  const Events& events_;
  const rpc::Calls& calls_;
  const std::chrono::system_clock::time_point started_ = std::chrono::system_clock::now();
};

}  // namespace

struct Metrics::Server {
  explicit Server(const std::string& address) : exposer(address) {}
  prometheus::Exposer exposer;
  std::shared_ptr<Numbers> numbers;  // the exposer has it weakly
};

Metrics::Metrics() = default;
Metrics::~Metrics() = default;

absl::StatusOr<std::unique_ptr<Metrics>> Metrics::Listen(const Endpoint& endpoint, const Broker& broker,
                                                         const session::SessionTable& sessions,
                                                         const shm::Ledger& ledger, const Events& events,
                                                         const rpc::Calls& calls) {
  std::unique_ptr<Metrics> metrics(new Metrics);
  metrics->endpoint_ = endpoint;
  try {
    metrics->server_ = std::make_unique<Server>(endpoint.ToString());
    metrics->endpoint_.port = metrics->server_->exposer.GetListeningPorts().at(0);
  } catch (const std::exception&) {
    // It does not say what is wrong.
    return absl::FailedPreconditionError(
        absl::StrCat("metrics.listen ", endpoint.ToString(),
                     " cannot be listened on: another program does, or the address is not this machine's"));
  }
  metrics->server_->numbers = std::make_shared<Numbers>(broker, sessions, ledger, events, calls);
  metrics->server_->exposer.RegisterCollectable(metrics->server_->numbers);
  return metrics;
}

}  // namespace mapbroker
