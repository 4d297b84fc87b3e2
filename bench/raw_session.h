// A session below the library, so that a call is the call alone and nothing is attached.
#pragma once

#include <fcntl.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "bench/noop_client.h"
#include "client/src/handoff.h"
#include "client/src/rpc_stub.h"

namespace mapbroker::bench {

// Has one range mapped that is shared from then on.
class RawSession {
 public:
  explicit RawSession(const std::string& dir)
      : handoff_(*Handoff::Connect(dir)),
        welcome_(*handoff_->Hello({}, pool_)),
        // With calls numbered as a client's are that goes on after a restart.
        stub_(dir, welcome_.token(), nullptr, [](std::uint64_t) { return absl::UnavailableError("no restart here"); }) {
    const shm::UniqueFd file(open(MAPBROKERD, O_RDONLY | O_CLOEXEC));
    shared_.set_length(1 << 20);
    shared_.set_prot(PROT_READ);
    shared_.set_flags(MAP_PRIVATE);
    shared_.set_fd(*handoff_->PassFile(file.get()));
    const v1::MmapResponse first = Mmap(shared_);
    unmap_.set_address(first.address());
    unmap_.set_length(first.length());
  }

  // Adds the times of `count` calls that map the range, each followed by an unmapping that is not timed.
  void MapShared(std::vector<double>& times, int count) {
    for (int i = 0; i < count; ++i) {
      times.push_back(Microseconds([&] { Mmap(shared_); }));
      if (const absl::Status status = stub_.Munmap(unmap_); !status.ok()) Die(status);
    }
  }

  void GrowTo(int mappings) {
    v1::MmapRequest page;
    page.set_length(4096);
    page.set_prot(PROT_READ | PROT_WRITE);
    page.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
    page.set_fd(-1);
    for (; live_ < mappings; ++live_) Mmap(page);
  }

 private:
  [[noreturn]] static void Die(const absl::Status& status) {
    std::fprintf(stderr, "bench: %s\n", std::string(status.message()).c_str());
    std::exit(EXIT_FAILURE);
  }
  v1::MmapResponse Mmap(const v1::MmapRequest& request) {
    const auto mapped = stub_.Mmap(request);
    if (!mapped.ok()) Die(mapped.status());
    return *mapped;
  }

  shm::UniqueFd pool_;
  std::unique_ptr<Handoff> handoff_;
  v1::Welcome welcome_;
  RpcStub stub_;
  v1::MmapRequest shared_;
  v1::MunmapRequest unmap_;
  int live_ = 1;
};

}  // namespace mapbroker::bench
