// D12: drivers that do not keep to the protocol, which the library's never do.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "mapbroker/v1/drivers.grpc.pb.h"
#include "mapbroker/v1/handoff.pb.h"
#include "proto/handoff_packet.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/daemon.h"
#include "tests/integration/raw_socket.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kMemory = 8192;

class DriverProtocol : public ::testing::Test {
 protected:
  DriverProtocol() {
    EXPECT_TRUE(session_);
    v1::HandoffRequest hello;
    hello.mutable_hello()->set_min_version(kMinProtocolVersion);
    hello.mutable_hello()->set_max_version(kMaxProtocolVersion);
    EXPECT_EQ(SendHandoffPacket(session_.get(), hello, -1), 0);
    v1::HandoffReply reply;
    ReceiveHandoffPacket(session_.get(), reply);
    context_.AddMetadata(kSessionMetadata, absl::BytesToHexString(reply.welcome().token()));
    context_.set_deadline(std::chrono::system_clock::now() + kDeadline);
    stream_ = stub_->Drive(&context_);
  }
  ~DriverProtocol() override {
    context_.TryCancel();
    daemon_.ExpectServes();
  }

  v1::ToDriver Register() {
    v1::FromDriver message;
    v1::RegisterDriver& request = *message.mutable_register_();
    request.set_name("dev:/raw");
    request.set_mode(0666);
    request.set_get_unmapped_area(true);
    request.set_mmap(true);
    request.set_read(true);
    request.set_has_capabilities(true);
    request.set_capabilities(1 | 2 | 4 | 8);
    request.set_memory(kMemory);
    EXPECT_TRUE(stream_->Write(message));
    v1::ToDriver reply;
    EXPECT_TRUE(stream_->Read(&reply));
    EXPECT_TRUE(reply.has_registered());
    return reply;
  }
  // The number of the errno that ended the stream.
  int End() {
    v1::ToDriver message;
    while (stream_->Read(&message)) {
    }
    return ErrnoIn(stream_->Finish());
  }
  static int ErrnoIn(const grpc::Status& status) {
    v1::RpcStatus details;
    v1::Error error;
    EXPECT_TRUE(details.ParseFromString(status.error_details()) && details.details_size() > 0 &&
                details.details(0).UnpackTo(&error))
        << status.error_message();
    EXPECT_EQ(error.rule(), "D12");
    return error.errno_value();
  }
  // What a user of the device is told by mapctl when its calls are answered so. `answer` fills the answer to a call and
  // says whether it is the last.
  std::string Told(std::vector<std::string> arguments,
                   const std::function<bool(const v1::DriverCall&, v1::DriverAnswer&)>& answer) {
    arguments.insert(arguments.begin(), {MAPCTL, "--runtime-dir", daemon_.runtime_dir()});
    Child user(arguments);
    v1::ToDriver call;
    for (bool last = false; !last && stream_->Read(&call);) {
      v1::FromDriver message;
      message.mutable_answer()->set_id(call.call().id());
      last = answer(call.call(), *message.mutable_answer());
      stream_->Write(message);
    }
    EXPECT_EQ(user.Wait(), 1);
    return user.Errors();
  }

  Daemon daemon_;
  const shm::UniqueFd session_ = ConnectTo(daemon_.runtime_dir() + "/" + kHandoffSocketName, SOCK_SEQPACKET, kDeadline);
  const std::unique_ptr<v1::Drivers::Stub> stub_ = v1::Drivers::NewStub(
      grpc::CreateChannel("unix:" + daemon_.runtime_dir() + "/" + kGrpcSocketName, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::FromDriver, v1::ToDriver>> stream_;
};

TEST_F(DriverProtocol, AnAnswerBeforeRegistering) {
  v1::FromDriver message;
  message.mutable_answer()->set_id(1);
  stream_->Write(message);
  EXPECT_EQ(End(), EPROTO);
}

TEST_F(DriverProtocol, AnEmptyMessage) {
  stream_->Write(v1::FromDriver());
  EXPECT_EQ(End(), EPROTO);
}

TEST_F(DriverProtocol, RegisteringTwice) {
  Register();
  v1::FromDriver message;
  message.mutable_register_()->set_name("dev:/other");
  stream_->Write(message);
  EXPECT_EQ(End(), EPROTO);
}

TEST_F(DriverProtocol, AnAnswerToWhatWasNeverAsked) {
  Register();
  v1::FromDriver message;
  message.mutable_answer()->set_id(77);
  stream_->Write(message);
  EXPECT_EQ(End(), EPROTO);
}

TEST_F(DriverProtocol, AnAreaThatItsMemoryDoesNotHave) {
  Register();
  for (const std::uint64_t offset : {kMemory, kMemory - 4095, std::uint64_t{1}, UINT64_MAX, UINT64_MAX - 4095}) {
    EXPECT_THAT(Told({"map", "dev:/raw", "--shared", "--length", "4096"},
                     [&](const auto&, auto& answer) {
                       answer.set_memory_offset(offset);
                       return true;
                     }),
                HasSubstr("EPROTO: the driver answered nonsense"))
        << offset;
  }
}

TEST_F(DriverProtocol, AnErrnoThatIsNone) {
  Register();
  for (const int error : {-1, 4096, INT32_MAX}) {
    EXPECT_THAT(Told({"map", "dev:/raw", "--shared"},
                     [&](const auto&, auto& answer) {
                       answer.set_error(error);
                       return true;
                     }),
                HasSubstr("EPROTO: the driver answered nonsense"))
        << error;
  }
}

TEST_F(DriverProtocol, MoreBytesThanWereAskedFor) {
  Register();
  EXPECT_THAT(Told({"read", "dev:/raw"},
                   [](const v1::DriverCall& call, v1::DriverAnswer& answer) {
                     if (call.has_read()) {
                       answer.set_data(std::string(call.read().length() + 1, 'x'));
                     } else {
                       answer.set_error(ENOSYS);
                     }
                     return call.has_read();
                   }),
              HasSubstr("EPROTO: the driver answered nonsense"));
}

}  // namespace
}  // namespace mapbroker::testing
