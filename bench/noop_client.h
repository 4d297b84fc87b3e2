// The call that does nothing, against which calls are measured.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "noop.grpc.pb.h"

namespace mapbroker::bench {

inline double Microseconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

class NoopClient {
 public:
  // Waits until the server behind the socket answers.
  explicit NoopClient(const std::string& socket)
      : stub_(Noop::NewStub(grpc::CreateChannel("unix:" + socket, grpc::InsecureChannelCredentials()))) {
    while (!Call()) std::this_thread::yield();
  }
  bool Call() {
    grpc::ClientContext context;
    NoopMessage response;
    return stub_->Call(&context, NoopMessage(), &response).ok();
  }
  // Adds the times of `count` calls, with one that is not timed after each, as an unmapping follows a mapping.
  void Call(std::vector<double>& times, int count) {
    for (int i = 0; i < count; ++i) {
      times.push_back(Microseconds([&] { Call(); }));
      Call();
    }
  }

 private:
  std::unique_ptr<Noop::Stub> stub_;
};

}  // namespace mapbroker::bench
