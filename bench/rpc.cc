// Mmap of a range that is shared already against a call that does nothing, and how it grows with what is mapped.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>

#include "bench/daemon_under_test.h"
#include "bench/report.h"
#include "client/src/handoff.h"
#include "client/src/rpc_stub.h"
#include "noop.grpc.pb.h"

namespace mapbroker::bench {
namespace {

constexpr int kRounds = 60;  // the two sides take turns, so that both see the same machine
constexpr int kCallsPerRound = 100;

double Microseconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "bench: %s\n", std::string(status.message()).c_str());
  std::exit(EXIT_FAILURE);
}

// A session below the library, so that a call is the call alone and nothing is attached.
class RawSession {
 public:
  explicit RawSession(const std::string& dir)
      : handoff_(*Handoff::Connect(dir)), welcome_(*handoff_->Hello(false, pool_)), stub_(dir, welcome_.token()) {}
  int Pass(int fd) { return *handoff_->PassFile(fd); }
  RpcStub& stub() { return stub_; }

 private:
  shm::UniqueFd pool_;
  std::unique_ptr<Handoff> handoff_;
  v1::Welcome welcome_;
  RpcStub stub_;
};

class NoopClient {
 public:
  explicit NoopClient(const std::string& socket)
      : stub_(Noop::NewStub(grpc::CreateChannel("unix:" + socket, grpc::InsecureChannelCredentials()))) {
    while (!Call()) std::this_thread::yield();
  }
  bool Call() {
    grpc::ClientContext context;
    NoopMessage response;
    return stub_->Call(&context, NoopMessage(), &response).ok();
  }

 private:
  std::unique_ptr<Noop::Stub> stub_;
};

void Run() {
  const DaemonUnderTest daemon("1G");
  const Client client = daemon.ConnectWhenResident();
  const std::string noop_socket = daemon.dir() + "/noop.sock";
  const Child noop_server({NOOP_SERVER, noop_socket});
  NoopClient noop(noop_socket);

  RawSession session(daemon.dir());
  const int fd = open(MAPBROKERD, O_RDONLY | O_CLOEXEC);
  v1::MmapRequest shared;
  shared.set_length(1 << 20);
  shared.set_prot(PROT_READ);
  shared.set_flags(MAP_PRIVATE);
  shared.set_fd(session.Pass(fd));
  const auto keep = session.stub().Mmap(shared);
  if (!keep.ok()) Die(keep.status());

  v1::MunmapRequest unmap;
  unmap.set_address(keep->address());
  unmap.set_length(keep->length());
  std::vector<double> noop_times;
  const auto map_times = [&](bool with_noop) {
    std::vector<double> times;
    for (int round = 0; round < kRounds; ++round) {
      for (int i = 0; i < kCallsPerRound; ++i) {
        times.push_back(Microseconds([&] {
          if (const auto mapped = session.stub().Mmap(shared); !mapped.ok()) Die(mapped.status());
        }));
        if (const absl::Status status = session.stub().Munmap(unmap); !status.ok()) Die(status);
      }
      for (int i = 0; with_noop && i < 2 * kCallsPerRound; ++i) {
        const double time = Microseconds([&] { noop.Call(); });
        if (i % 2 == 0) noop_times.push_back(time);  // as often as Mmap, with a call between that is not timed
      }
    }
    return times;
  };
  map_times(true);  // warm-up
  noop_times.clear();
  const double alone = Median(map_times(true));
  Report("shared Mmap over gRPC, p50, against a no-op call", alone, Median(noop_times), "us");

  v1::MmapRequest page;
  page.set_length(4096);
  page.set_prot(PROT_READ | PROT_WRITE);
  page.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
  page.set_fd(-1);
  int live = 1;
  const auto grow_to = [&](int mappings) {
    for (; live < mappings; ++live) {
      if (const auto mapped = session.stub().Mmap(page); !mapped.ok()) Die(mapped.status());
    }
  };
  grow_to(1000);
  const double at_1000 = Median(map_times(false));
  grow_to(100000);
  Report("shared Mmap over gRPC, p50, 100,000 live against 1,000", Median(map_times(false)), at_1000, "us");
}

}  // namespace
}  // namespace mapbroker::bench

int main() { mapbroker::bench::Run(); }
