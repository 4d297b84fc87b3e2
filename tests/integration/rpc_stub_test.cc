#include "client/src/rpc_stub.h"

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <set>
#include <string>

#include "client/src/status.h"
#include "mapbroker/v1/memory.grpc.pb.h"
#include "proto/handoff_packet.h"

namespace mapbroker {
namespace {

// Refuses as gRPC itself does, before it lets a call through.
class BusyMemory final : public v1::Memory::Service {
 public:
  explicit BusyMemory(std::string words) : words_(std::move(words)) {}
  grpc::Status Munmap(grpc::ServerContext* context, const v1::MunmapRequest*, v1::MunmapResponse*) override {
    const auto number = context->client_metadata().find(kRequestMetadata);
    std::string text(number->second.data(), number->second.size());
    numbers.insert(text.substr(0, text.find(" again")));
    if (++calls > refusals) return grpc::Status::OK;
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, words_};
  }
  int refusals = 3, calls = 0;
  std::set<std::string> numbers;

 private:
  const std::string words_;
};

class RpcStubTest : public ::testing::Test {
 protected:
  RpcStubTest() {
    std::string name = ::testing::TempDir() + "mapbroker-stub-XXXXXX";
    dir_ = mkdtemp(name.data());
  }
  ~RpcStubTest() override {
    server_.reset();
    std::filesystem::remove_all(dir_);
  }
  absl::Status Unmap(BusyMemory& memory) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + dir_ + "/" + kGrpcSocketName, grpc::InsecureServerCredentials());
    builder.RegisterService(&memory);
    server_ = builder.BuildAndStart();
    RpcStub stub(dir_, "token", nullptr, [](std::uint64_t) { return absl::UnavailableError("there is one daemon"); });
    return stub.Munmap(v1::MunmapRequest());
  }

 private:
  std::string dir_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(RpcStubTest, ACallThatTheServerHasNoThreadForIsMadeAgainByItsNumber) {
  BusyMemory memory("Server Threadpool Exhausted");
  EXPECT_TRUE(Unmap(memory).ok());
  EXPECT_EQ(memory.calls, 4);
  EXPECT_EQ(memory.numbers.size(), 1u);
}

TEST_F(RpcStubTest, ARequestThatIsTooLargeIsNotMadeAgain) {
  BusyMemory memory("Received message larger than max (2 vs. 1)");
  EXPECT_EQ(ErrnoOf(Unmap(memory)), EMSGSIZE);
  EXPECT_EQ(memory.calls, 1);
}

}  // namespace
}  // namespace mapbroker
