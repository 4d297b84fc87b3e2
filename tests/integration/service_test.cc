// The daemon as a gRPC service and as a service of the system: health, reflection, readiness, stopping.
#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "mapbroker/v1/administration.grpc.pb.h"
#include "mapbroker/v1/error.pb.h"
#include "mapbroker/v1/inspection.grpc.pb.h"
#include "mapbroker/v1/memory.grpc.pb.h"
#include "proto/handoff_packet.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"
#include "tests/integration/raw_socket.h"

namespace mapbroker::testing {
namespace {

using shm::UniqueFd;

class Service : public ::testing::Test {
 protected:
  std::string Path() const { return daemon_.runtime_dir() + "/" + kGrpcSocketName; }

  std::unique_ptr<grpc::ClientContext> Context() const {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() + kDeadline);
    return context;
  }

  // A connection below gRPC.
  UniqueFd Connect() const {
    UniqueFd connection = ConnectTo(Path(), SOCK_STREAM, kDeadline);
    EXPECT_TRUE(connection) << strerror(errno);
    return connection;
  }

  // The answer to one serialized message of a service whose generated code Debian does not ship.
  std::string CallOnce(const std::string& method, const std::string& message) {
    grpc::GenericStub stub(channel_);
    grpc::CompletionQueue queue;
    const auto context = Context();
    const auto call = stub.PrepareCall(context.get(), method, &queue);
    const auto next = [&] {
      void* tag;
      bool ok = false;
      return queue.Next(&tag, &ok) && ok;
    };
    call->StartCall(nullptr);
    EXPECT_TRUE(next());
    const grpc::Slice slice(message);
    call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
    EXPECT_TRUE(next());
    grpc::ByteBuffer answer;
    call->Read(&answer, nullptr);
    EXPECT_TRUE(next()) << "no answer from " << method;
    grpc::Status status;
    call->Finish(&status, nullptr);
    EXPECT_TRUE(next());
    EXPECT_TRUE(status.ok()) << status.error_message();
    grpc::Slice whole;
    return answer.DumpToSingleSlice(&whole).ok() ? std::string(whole.begin(), whole.end()) : "";
  }

  Daemon daemon_;
  const std::shared_ptr<grpc::Channel> channel_ =
      grpc::CreateChannel("unix:" + Path(), grpc::InsecureChannelCredentials());
  const std::unique_ptr<v1::Administration::Stub> administration_ = v1::Administration::NewStub(channel_);
  const std::unique_ptr<v1::Inspection::Stub> inspection_ = v1::Inspection::NewStub(channel_);
  const std::unique_ptr<v1::Memory::Stub> memory_ = v1::Memory::NewStub(channel_);
};

TEST_F(Service, SaysThatItIsHealthy) {
  // An empty HealthCheckRequest; HealthCheckResponse{status: SERVING}.
  EXPECT_EQ(CallOnce("/grpc.health.v1.Health/Check", ""), std::string("\x08\x01"));
}

TEST_F(Service, TellsItsServicesByReflection) {
  // ServerReflectionRequest{list_services: ""}.
  const std::string services =
      CallOnce("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3a" + std::string(1, '\0'));
  EXPECT_NE(services.find("mapbroker.v1.Memory"), std::string::npos);
  EXPECT_NE(services.find("grpc.health.v1.Health"), std::string::npos);
}

TEST_F(Service, TellsItsStatusToAnyone) {
  v1::DaemonStatus status;
  ASSERT_TRUE(inspection_->GetStatus(Context().get(), {}, &status).ok());
  EXPECT_EQ(status.pool().size(), std::uint64_t{64} << 20);
  EXPECT_EQ(status.profile(), "classic");
  EXPECT_EQ(status.pool().used() + status.pool().free() + status.pool().scrubbing(), status.pool().size());
  EXPECT_EQ(status.limits().at("max_map_count"), 65530u);
}

TEST_F(Service, TellsEventsToSessionsAlone) {
  const auto context = Context();
  const auto reader = inspection_->Watch(context.get(), {});
  v1::WatchResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(Service, RefusesAdministrationWithoutASession) {
  v1::SetLogLevelRequest request;
  request.set_level("off");
  v1::SetLogLevelResponse response;
  EXPECT_EQ(administration_->SetLogLevel(Context().get(), request, &response).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(Service, RefusesMappingCallsWithoutASession) {
  v1::MmapRequest map;
  map.set_length(4096);
  map.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
  v1::MmapResponse mapped;
  EXPECT_FALSE(memory_->Mmap(Context().get(), map, &mapped).ok());
  v1::MunmapResponse unmapped;
  EXPECT_FALSE(memory_->Munmap(Context().get(), {}, &unmapped).ok());
}

TEST_F(Service, RefusesTokensThatItDidNotGiveAndExplainsItself) {
  std::mt19937 random(1);
  for (const std::size_t size : {std::size_t{1}, std::size_t{48}, std::size_t{49}, std::size_t{3000}}) {
    std::string token(size, '0');
    for (char& digit : token) digit = "0123456789abcdefxyz"[random() % 19];
    const auto context = Context();
    context->AddMetadata(kSessionMetadata, token);
    v1::MmapRequest map;
    map.set_length(4096);
    map.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
    v1::MmapResponse mapped;
    const grpc::Status status = memory_->Mmap(context.get(), map, &mapped);
    v1::RpcStatus details;
    v1::Error error;
    ASSERT_TRUE(details.ParseFromString(status.error_details()));
    ASSERT_EQ(details.details_size(), 1);
    ASSERT_TRUE(details.details(0).UnpackTo(&error));
    EXPECT_EQ(error.errno_value(), ESRCH);
    EXPECT_EQ(error.errno_name(), "ESRCH");
    EXPECT_EQ(error.explanation(), status.error_message());
  }
  daemon_.ExpectServes();
}

TEST_F(Service, RefusesAMessageThatIsTooLarge) {
  grpc::ClientContext context;
  context.AddMetadata(kSessionMetadata, std::string(48, '0'));
  v1::MmapRequest request;
  request.GetReflection()->MutableUnknownFields(&request)->AddLengthDelimited(99, std::string(8 << 20, 'x'));
  v1::MmapResponse response;
  EXPECT_EQ(memory_->Mmap(&context, request, &response).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  daemon_.ExpectServes();
}

TEST_F(Service, OutlivesGarbageOnItsSocket) {
  std::mt19937 random(1);
  for (const std::string& start : {std::string(), std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")}) {
    for (int i = 0; i < 50; ++i) {
      const UniqueFd connection = Connect();
      std::string bytes = start;
      for (int at = 0; at < 5000; ++at) bytes.push_back(static_cast<char>(random()));
      // The daemon may hang up before it has read all of it.
      send(connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    }
  }
  daemon_.ExpectServes();
}

TEST_F(Service, OutlivesAFrameOfGarbageLength) {
  const UniqueFd connection = Connect();
  std::string bytes = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  bytes += std::string("\xff\xff\xff\x00\x00\x00\x00\x00\x01", 9) + std::string(1 << 20, 'x');
  // Part of it waits in the socket, so the send must not wait for a daemon that does not read it.
  send(connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  daemon_.ExpectServes();
}

TEST_F(Service, PeersThatSayNothingDelayNobody) {
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 200; ++i) silent.push_back(Connect());
  daemon_.ExpectServes();
}

TEST_F(Service, AListingThatNobodyReadsDelaysNobody) {
  Peer peer(daemon_.runtime_dir());
  for (int i = 0; i < 3000; ++i) {
    ASSERT_EQ(peer.Map("", {.length = 4096, .flags = MAP_PRIVATE | MAP_ANONYMOUS}).error, 0);
  }
  const auto context = Context();
  const auto reader = inspection_->ListMappings(context.get(), {});
  daemon_.ExpectServes();

  v1::ListMappingsResponse response;
  int rows = 0;
  while (reader->Read(&response)) {
    EXPECT_LE(response.rows_size(), 1024);
    rows += response.rows_size();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_GE(rows, 3000);
}

TEST_F(Service, StopsCleanlyWithClientsAttachedWhoKeepTheirMemory) {
  const std::string file = daemon_.files().MakeFile("file", 10'000);
  Peer reader(daemon_.runtime_dir()), writer(daemon_.runtime_dir());
  const MapReply shared = reader.Map(file, {.length = 10'000});
  const MapReply own =
      writer.Map("", {.length = 8192, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
  daemon_.Stop();
  EXPECT_EQ(reader.Read(shared), ReadFile(file));
  writer.Scribble(own);
  EXPECT_EQ(writer.Read(own), Bytes(8192, '\1'));
}

TEST_F(Service, StopsCleanlyWhileAFileIsBeingRead) {
  Daemon large({"--pool-size", "640M"});
  Peer peer(large.runtime_dir());
  peer.StartMap(large.files().MakeSparseFile("large", 512 << 20), {.length = 512 << 20});
  large.Stop();
  peer.FinishMap();
}

}  // namespace
}  // namespace mapbroker::testing
