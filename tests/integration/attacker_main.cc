// Attacks a daemon in one way until it is killed, as another user where root runs it. Says "attacking" when it has
// begun.
//
//   attacker --list                    names all ways
//   attacker RUNTIME_DIR ATTACK USER
#include <fcntl.h>
#include <grp.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <deque>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "mapbroker/v1/files.grpc.pb.h"
#include "mapbroker/v1/handoff.pb.h"
#include "mapbroker/v1/inspection.grpc.pb.h"
#include "mapbroker/v1/memory.grpc.pb.h"
#include "proto/handoff_packet.h"
#include "shm_backend/unique_fd.h"
#include "tests/integration/raw_socket.h"

namespace mapbroker::testing {
namespace {

using shm::UniqueFd;

// Connections that an attack keeps at a time: what a process may have by default and more than the daemon likes.
constexpr std::size_t kConnections = 3000;
constexpr int kThreads = 4;

std::string runtime_dir;

void Begun() {
  static bool said = false;
  if (!std::exchange(said, true)) std::cout << "attacking" << std::endl;
}

// A daemon that drops an attacker must not stop the attack.
constexpr std::chrono::seconds kPatience(1);

UniqueFd ConnectHandoff() { return ConnectTo(runtime_dir + "/" + kHandoffSocketName, SOCK_SEQPACKET, kPatience); }
UniqueFd ConnectGrpc() { return ConnectTo(runtime_dir + "/" + kGrpcSocketName, SOCK_STREAM, kPatience); }

std::string HelloBytes() {
  v1::HandoffRequest request;
  request.mutable_hello()->set_min_version(kMinProtocolVersion);
  request.mutable_hello()->set_max_version(kMaxProtocolVersion);
  return request.SerializeAsString();
}

v1::HandoffReply Answer(const UniqueFd& connection) {
  v1::HandoffReply reply;
  ReceiveHandoffPacket(connection.get(), reply);
  return reply;
}

struct Session {
  UniqueFd connection;
  std::string hex_token;  // empty: refused
};

Session Open() {
  Session session{ConnectHandoff(), ""};
  if (!session.connection || !SendBytes(session.connection, HelloBytes())) return session;
  session.hex_token = absl::BytesToHexString(Answer(session.connection).welcome().token());
  return session;
}

v1::HandoffReply Pass(const Session& session, const std::vector<int>& fds) {
  v1::HandoffRequest request;
  request.mutable_pass_file();
  if (!SendBytes(session.connection, request.SerializeAsString(), fds)) return {};
  return Answer(session.connection);
}

// Of its own, not shared with other channels of the process.
std::shared_ptr<grpc::Channel> NewChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxSendMessageSize(-1);
  return grpc::CreateCustomChannel("unix:" + runtime_dir + "/" + kGrpcSocketName, grpc::InsecureChannelCredentials(),
                                   arguments);
}

// Keeps as many connections as it can, and makes new ones for those that the daemon drops.
void KeepConnections(const std::function<UniqueFd()>& connect_one) {
  std::deque<UniqueFd> connections;
  for (;;) {
    UniqueFd next = connect_one();
    if (next) connections.push_back(std::move(next));
    if (connections.size() >= kConnections || (!next && connections.size() > kConnections / 2)) {
      Begun();
      // The oldest half goes, so that there is always something to accept and something to drop.
      connections.erase(connections.begin(), connections.begin() + static_cast<std::ptrdiff_t>(connections.size() / 2));
    }
    if (connections.size() > kConnections / 4) Begun();
  }
}

void SilentHandoff() { KeepConnections(ConnectHandoff); }

void SilentGrpc() { KeepConnections(ConnectGrpc); }

// HTTP/2's preface and empty settings, and then no frame.
void PrefaceOnly() {
  KeepConnections([] {
    UniqueFd connection = ConnectGrpc();
    const std::string preface("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);
    if (connection && send(connection.get(), preface.data(), preface.size(), MSG_NOSIGNAL) < 0) connection.reset();
    return connection;
  });
}

std::string Garbage(std::mt19937& random, std::size_t size) {
  std::string bytes(size, '\0');
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(random()); });
  return bytes;
}

void BrokenPackets() {
  std::mt19937 random(1);
  const std::string hello = HelloBytes();
  for (;;) {
    const UniqueFd connection = ConnectHandoff();
    const std::array<std::string, 5> packets{hello.substr(0, hello.size() - 1), Garbage(random, 100),
                                             std::string(100'000, 'x'), Garbage(random, 4096), "\x7a\x01x"};
    SendBytes(connection, packets[random() % packets.size()]);
    Answer(connection);
    Begun();
  }
}

void GrpcGarbage() {
  std::mt19937 random(2);
  for (;;) {
    const UniqueFd connection = ConnectGrpc();
    std::string bytes = Garbage(random, 1 + random() % 20'000);
    if (random() % 2 == 0) bytes = std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24) + bytes;
    send(connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    Begun();
  }
}

// Descriptors of every kind, one at a time and hundreds at once, where they belong and where not, and mapped.
void Descriptors() {
  std::array<int, 2> ends;
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return;
  const std::vector<int> kinds{ends[0],
                               ends[1],
                               socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0),
                               epoll_create1(EPOLL_CLOEXEC),
                               eventfd(0, EFD_CLOEXEC),
                               open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                               open("/", O_PATH | O_CLOEXEC),
                               open("/dev/null", O_RDWR | O_CLOEXEC),
                               open("/proc/self/maps", O_RDONLY | O_CLOEXEC)};
  const auto memory = v1::Memory::NewStub(NewChannel());
  std::vector<Session> sessions;
  for (std::size_t at = 0;; ++at) {
    if (sessions.size() < 64) sessions.push_back(Open());
    Session& session = sessions[at % sessions.size()];
    const v1::HandoffReply reply = Pass(session, {kinds[at % kinds.size()]});
    if (reply.has_file_passed() && at % 8 == 0) {
      grpc::ClientContext context;
      context.AddMetadata(kSessionMetadata, session.hex_token);
      v1::MmapRequest request;
      request.set_length(4096);
      request.set_prot(1);
      request.set_flags(2);
      request.set_fd(reply.file_passed().fd());
      v1::MmapResponse response;
      memory->Mmap(&context, request, &response);
    }
    if (!reply.has_file_passed() && reply.error().errno_value() != EMFILE) session = Open();
    if (at % 16 == 0) Pass(session, std::vector<int>(250, kinds[at % kinds.size()]));
    if (at > 256) Begun();
  }
}

// Sessions that are opened and left, until there may be no more; and again when they have ended.
void Sessions() {
  std::vector<Session> sessions;
  for (;;) {
    sessions.push_back(Open());
    if (!sessions.back().hex_token.empty() && sessions.size() < kConnections) continue;
    Begun();
    sessions.clear();  // the process lives, so they last: every further Hello is refused
  }
}

// Runs in several threads at once, each with a connection of its own.
void InThreads(const std::function<void()>& attack) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(attack);
  for (std::thread& thread : threads) thread.join();
}

// A million requests, and then some.
void Requests() {
  const Session session = Open();
  InThreads([&] {
    const auto memory = v1::Memory::NewStub(NewChannel());
    for (int at = 0;; ++at) {
      grpc::ClientContext context, unmapping;
      for (grpc::ClientContext* each : {&context, &unmapping}) each->AddMetadata(kSessionMetadata, session.hex_token);
      v1::MmapRequest request;
      request.set_length(1 + static_cast<std::uint64_t>(at) % 100'000);
      request.set_prot(3);
      request.set_flags(0x22);
      request.set_fd(-1);
      v1::MmapResponse mapped;
      v1::MunmapRequest unmap;
      v1::MunmapResponse unmapped;
      if (memory->Mmap(&context, request, &mapped).ok()) {
        unmap.set_address(mapped.address());
        unmap.set_length(mapped.length());
        memory->Munmap(&unmapping, unmap, &unmapped);
      }
      if (at == 100) std::cout << "attacking" << std::endl;
    }
  });
}

// Streams without end, of which nothing is read: in turns with a token and without.
void SlowReaders() {
  const Session session = Open();
  grpc::CompletionQueue queue;
  struct Call {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientAsyncReader<v1::ListMappingsResponse>> reader;
  };
  std::deque<std::unique_ptr<Call>> calls;
  std::vector<std::unique_ptr<v1::Inspection::Stub>> stubs;
  for (int i = 0; i < 8; ++i) stubs.push_back(v1::Inspection::NewStub(NewChannel()));
  for (std::size_t at = 0;; ++at) {
    auto call = std::make_unique<Call>();
    if (at % 2 == 0) call->context.AddMetadata(kSessionMetadata, session.hex_token);
    call->reader = stubs[at % stubs.size()]->AsyncListMappings(&call->context, {}, &queue, nullptr);
    calls.push_back(std::move(call));
    if (calls.size() > 2000) {
      Begun();
      calls.front()->context.TryCancel();
      // Its fate is of no interest; what it holds must stay until gRPC has done with it.
      calls.front().release();
      calls.pop_front();
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    void* tag;
    bool ok;
    while (queue.AsyncNext(&tag, &ok, gpr_time_0(GPR_CLOCK_REALTIME)) == grpc::CompletionQueue::GOT_EVENT) {
    }
  }
}

// Calls whose metadata is a megabyte, and messages that are as large as they may be and larger.
void Oversize() {
  const Session session = Open();
  InThreads([&] {
    const auto files = v1::Files::NewStub(NewChannel());
    for (int at = 0;; ++at) {
      grpc::ClientContext context;
      context.AddMetadata(kSessionMetadata, session.hex_token);
      if (at % 3 == 0) context.AddMetadata("x-large", std::string(std::size_t{1} << 20, 'x'));
      v1::PwriteRequest request;
      request.set_fd(1);
      request.set_data(std::string((std::size_t{1} << 20) * (at % 3 == 1 ? 1 : 4), 'x'));
      v1::PwriteResponse response;
      files->Pwrite(&context, request, &response);
      if (at == 3) std::cout << "attacking" << std::endl;
    }
  });
}

const std::map<std::string, void (*)()> kAttacks = {{"silent-handoff", SilentHandoff},
                                                    {"broken-packets", BrokenPackets},
                                                    {"descriptors", Descriptors},
                                                    {"sessions", Sessions},
                                                    {"requests", Requests},
                                                    {"silent-grpc", SilentGrpc},
                                                    {"preface-only", PrefaceOnly},
                                                    {"grpc-garbage", GrpcGarbage},
                                                    {"slow-readers", SlowReaders},
                                                    {"oversize", Oversize}};

}  // namespace
}  // namespace mapbroker::testing

int main(int argc, char** argv) {
  using namespace mapbroker::testing;
  if (argc == 2 && argv[1] == std::string("--list")) {
    for (const auto& [name, attack] : kAttacks) std::cout << name << '\n';
    return 0;
  }
  if (argc != 4 || !kAttacks.contains(argv[2])) return 2;
  runtime_dir = argv[1];
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  const auto user = static_cast<uid_t>(std::stoul(argv[3]));
  if (geteuid() == 0 &&
      (setgroups(0, nullptr) != 0 || setresgid(user, user, user) != 0 || setresuid(user, user, user) != 0)) {
    return 1;
  }
  kAttacks.at(argv[2])();
  return 1;
}
