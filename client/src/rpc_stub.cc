#include "client/src/rpc_stub.h"

#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/src/space_mark.h"
#include "client/src/status.h"
#include "mapbroker/v1/administration.grpc.pb.h"
#include "mapbroker/v1/devices.grpc.pb.h"
#include "mapbroker/v1/drivers.grpc.pb.h"
#include "mapbroker/v1/files.grpc.pb.h"
#include "mapbroker/v1/inspection.grpc.pb.h"
#include "mapbroker/v1/memory.grpc.pb.h"
#include "mapbroker/v1/ptrace.grpc.pb.h"
#include "mapbroker/v1/sysv_shm.grpc.pb.h"
#include "proto/handoff_packet.h"
#include "shm_backend/mutex.h"

namespace mapbroker {
namespace {

// gRPC's own answer to a message above its limit; there is no code for it alone.
bool IsTooLarge(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED &&
         absl::StrContains(status.error_message(), "larger than max");
}

// gRPC's own answer when others' calls have taken all of its threads, as many slow readers do: the call has not begun.
bool IsCrowdedOut(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED && status.error_details().empty() &&
         !IsTooLarge(status);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  v1::RpcStatus details;
  v1::Error error;
  if (details.ParseFromString(status.error_details()) && details.details_size() > 0 &&
      details.details(0).UnpackTo(&error)) {
    return FromWire(error);
  }
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    return NoDaemon(ECONNRESET, "the daemon does not answer: it was stopped; connect anew when it is back");
  }
  // Over TLS, where it is asked before the call has come to its service.
  if (status.error_code() == grpc::StatusCode::PERMISSION_DENIED) return MakeStatus(EACCES, status.error_message());
  if (status.error_code() == grpc::StatusCode::CANCELLED) {
    return NoDaemon(ECONNRESET, "the daemon has cut the connection: it stops, or its calls were not taken");
  }
  if (IsTooLarge(status)) return MakeStatus(EMSGSIZE, "the request is larger than the daemon reads: ask for less");
  if (IsCrowdedOut(status)) {
    return MakeStatus(EAGAIN, absl::StrCat("the daemon has no room for the call now (", status.error_message(),
                                           "): call again, a little later"));
  }
  return MakeStatus(EIO, absl::StrCat("gRPC: ", status.error_message()));
}

class GrpcDriverStream final : public DriverStream {
 public:
  GrpcDriverStream(v1::Drivers::Stub& stub, const std::string& hex_token) {
    context_.AddMetadata(kSessionMetadata, hex_token);
    stream_ = stub.Drive(&context_);
  }
  bool Read(v1::ToDriver& message) override { return stream_->Read(&message); }
  bool Write(const v1::FromDriver& message) override { return stream_->Write(message); }
  void Cancel() override { context_.TryCancel(); }
  absl::Status Finish() override { return FromGrpc(stream_->Finish()); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::FromDriver, v1::ToDriver>> stream_;
};

// Whether a call is made again when the daemon was lost during it.
enum class Repeat {
  kFreely,    // it only asks, or does the same when it is done twice
  kByNumber,  // the daemon knows by its number whether it was carried out
  kNot,
};

// The handoff socket answers before gRPC's channel has noticed that the daemon is back.
constexpr std::chrono::seconds kChannelDeadline(5);

// A call for which gRPC has no thread is made again so often, and so long after. The daemon lets no user hold so many
// for long.
constexpr int kMostCrowdedOut = 100;
constexpr std::chrono::milliseconds kCrowdedOutPause(50);

bool IsLost(const absl::Status& status) { return absl::IsUnavailable(status); }

}  // namespace

struct RpcStub::Channel {
  const SpaceMark mark;
  std::string hex_token;
  std::shared_ptr<grpc::Channel> channel;
  std::string server;  // "HOST:PORT" of a daemon over TLS
  std::unique_ptr<v1::Administration::Stub> administration;
  std::unique_ptr<v1::Devices::Stub> devices;
  std::unique_ptr<v1::Drivers::Stub> drivers;
  std::unique_ptr<v1::Inspection::Stub> inspection;
  std::unique_ptr<v1::Memory::Stub> memory;
  std::unique_ptr<v1::Files::Stub> files;
  std::unique_ptr<v1::Ptrace::Stub> ptrace;
  std::unique_ptr<v1::SysvShm::Stub> sysv_shm;

  const std::atomic<std::uint64_t>* epoch = nullptr;
  Reconnect reconnect;
  std::function<bool()> is_lost;
  shm::Mutex mutex;
  std::uint64_t last_request ABSL_GUARDED_BY(mutex) = 0;
  std::set<std::uint64_t> running ABSL_GUARDED_BY(mutex);

  absl::Status Understand(const grpc::Status& status) const {
    const bool answered = !status.error_details().empty();
    if (server.empty() || answered || status.error_code() != grpc::StatusCode::UNAVAILABLE) return FromGrpc(status);
    return NoDaemon(
        ECONNRESET,
        absl::StrCat("no connection to ", server, " (", status.error_message(),
                     "): it must be the daemon's tcp.listen, its certificate must be for that name and signed "
                     "by the CA that was given, and yours must be valid and signed by its tcp.client_ca"));
  }

  void Await() const { channel->WaitForConnected(std::chrono::system_clock::now() + kChannelDeadline); }

  std::uint64_t Epoch() const { return epoch == nullptr ? 0 : epoch->load(); }

  // The session again, and the channel to where it is: gRPC may not have noticed that the connection it has is over,
  // and does so by a call, whose answer does not matter.
  absl::Status Regain(std::uint64_t seen) const {
    if (absl::Status back = reconnect(seen); !back.ok()) return back;
    v1::FileStat nothing;
    Try(*files, &v1::Files::Stub::Stat, v1::StatRequest(), "", nothing);
    Await();
    return absl::OkStatus();
  }
  // To be asked before a call, as by the handoff socket it is known first that the daemon was lost.
  absl::Status Ready() const { return is_lost && is_lost() ? Regain(Epoch()) : absl::OkStatus(); }

  // One call with one answer. `number`: what the daemon knows it by, if it may be made again so.
  template <typename Stub, typename Request, typename Response>
  grpc::Status Try(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                   const Request& request, const std::string& number, Response& response) const {
    grpc::ClientContext context;
    if (!hex_token.empty()) context.AddMetadata(kSessionMetadata, hex_token);
    if (!number.empty()) context.AddMetadata(kRequestMetadata, number);
    return (stub.*method)(&context, request, &response);
  }

  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(Stub& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request, Repeat repeat = Repeat::kFreely) {
    if (absl::Status status = mark.Check(); !status.ok()) return status;
    std::uint64_t id = 0;
    std::string number;
    if (repeat == Repeat::kByNumber && reconnect) {
      shm::MutexLock lock(mutex);
      running.insert(id = ++last_request);
      number = absl::StrCat(id, " ", *running.begin());
    }
    Response response;
    absl::Status status;
    int crowded = 0;
    for (bool again = false;; again = true) {
      if (status = Ready(); !status.ok()) break;
      const std::uint64_t seen = Epoch();
      const grpc::Status answer =
          Try(stub, method, request, number.empty() || !again ? number : number + " again", response);
      status = Understand(answer);
      if (IsCrowdedOut(answer) && (repeat == Repeat::kFreely || !number.empty()) && ++crowded < kMostCrowdedOut) {
        std::this_thread::sleep_for(kCrowdedOutPause);
        continue;
      }
      if (!IsLost(status) || !reconnect) break;
      if (absl::Status back = Regain(seen); !back.ok()) {
        status = back;
        break;
      }
      if (repeat == Repeat::kNot) {
        status = MakeStatus(ECONNRESET,
                            "the daemon was restarted during the call, and whether it was carried out is not known: "
                            "look, and call again if it was not");
        break;
      }
    }
    if (id != 0) {
      shm::MutexLock lock(mutex);
      running.erase(id);
    }
    if (!status.ok()) return status;
    return response;
  }

  // One call with a stream of answers, which `take` gets until it returns false.
  template <typename Response, typename Stub, typename Request>
  absl::Status Read(Stub& stub,
                    std::unique_ptr<grpc::ClientReader<Response>> (Stub::*method)(grpc::ClientContext*, const Request&),
                    const Request& request, const std::function<bool(const Response&)>& take) const {
    if (absl::Status status = mark.Check(); !status.ok()) return status;
    for (;;) {
      if (absl::Status status = Ready(); !status.ok()) return status;
      const std::uint64_t seen = Epoch();
      grpc::ClientContext context;
      if (!hex_token.empty()) context.AddMetadata(kSessionMetadata, hex_token);
      const auto reader = (stub.*method)(&context, request);
      Response response;
      bool taken = false;
      while (reader->Read(&response)) {
        taken = true;
        if (take(response)) continue;
        context.TryCancel();
        reader->Finish();
        return absl::OkStatus();
      }
      const absl::Status status = Understand(reader->Finish());
      // Rows that the caller has seen cannot be taken back.
      if (!IsLost(status) || taken || !reconnect) return status;
      if (absl::Status back = Regain(seen); !back.ok()) return back;
    }
  }
};

RpcStub::RpcStub() : channel_(std::make_unique<Channel>()) {}

RpcStub::RpcStub(const std::string& runtime_dir, const std::string& token, const std::atomic<std::uint64_t>* epoch,
                 Reconnect reconnect, std::function<bool()> is_lost)
    : RpcStub() {
  channel_->epoch = epoch;
  channel_->reconnect = std::move(reconnect);
  channel_->is_lost = std::move(is_lost);
  grpc::ChannelArguments arguments;
  // A connection of its own, so that sessions of one process do not queue behind each other.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A portion of a listing is bounded in rows, but paths may be long.
  arguments.SetMaxReceiveMessageSize(-1);
  // The socket is on this machine, and a daemon that is restarted is back soon.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  channel_->hex_token = absl::BytesToHexString(token);
  channel_->channel = grpc::CreateCustomChannel(absl::StrCat("unix:", runtime_dir, "/", kGrpcSocketName),
                                                grpc::InsecureChannelCredentials(), arguments);
  MakeStubs();
}

absl::StatusOr<std::unique_ptr<RpcStub>> RpcStub::Remote(const RemoteOptions& options) {
  grpc::SslCredentialsOptions tls;
  for (const auto& [path, text] :
       {std::pair(&options.ca, &tls.pem_root_certs), std::pair(&options.certificate, &tls.pem_cert_chain),
        std::pair(&options.key, &tls.pem_private_key)}) {
    errno = 0;
    std::ifstream file(*path, std::ios::binary);
    text->assign(std::istreambuf_iterator<char>(file), {});
    if (!file.is_open() || text->empty()) {
      return MakeStatus(EINVAL,
                        absl::StrCat("\"", *path, "\" holds nothing that can be read (",
                                     errno == 0 ? "it is empty" : std::strerror(errno),
                                     "): over TLS the files of the CA, the certificate and its key are needed"));
    }
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  std::unique_ptr<RpcStub> stub(new RpcStub);
  stub->channel_->server = options.server;
  stub->channel_->channel = grpc::CreateCustomChannel(options.server, grpc::SslCredentials(tls), arguments);
  stub->MakeStubs();
  return stub;
}

void RpcStub::MakeStubs() {
  const auto& channel = channel_->channel;
  channel_->administration = v1::Administration::NewStub(channel);
  channel_->devices = v1::Devices::NewStub(channel);
  channel_->drivers = v1::Drivers::NewStub(channel);
  channel_->inspection = v1::Inspection::NewStub(channel);
  channel_->memory = v1::Memory::NewStub(channel);
  channel_->files = v1::Files::NewStub(channel);
  channel_->ptrace = v1::Ptrace::NewStub(channel);
  channel_->sysv_shm = v1::SysvShm::NewStub(channel);
}

RpcStub::~RpcStub() {
  // gRPC's threads are not in a forked child, so that there is nobody to take the channel down.
  if (!channel_->mark.IsHere()) static_cast<void>(channel_.release());
}

absl::StatusOr<v1::MmapResponse> RpcStub::Mmap(const v1::MmapRequest& request) {
  return channel_->Call(*channel_->memory, &v1::Memory::Stub::Mmap, request, Repeat::kByNumber);
}

absl::Status RpcStub::Munmap(const v1::MunmapRequest& request) {
  return channel_->Call(*channel_->memory, &v1::Memory::Stub::Munmap, request, Repeat::kByNumber).status();
}

absl::StatusOr<v1::MremapResponse> RpcStub::Mremap(const v1::MremapRequest& request) {
  return channel_->Call(*channel_->memory, &v1::Memory::Stub::Mremap, request, Repeat::kByNumber);
}

absl::StatusOr<v1::DaemonStatus> RpcStub::GetStatus() {
  return channel_->Call(*channel_->inspection, &v1::Inspection::Stub::GetStatus, v1::GetStatusRequest());
}

absl::Status RpcStub::ListMappings(const v1::ListMappingsRequest& request,
                                   const std::function<bool(const v1::MappingRow&)>& row) {
  return channel_->Read<v1::ListMappingsResponse>(*channel_->inspection, &v1::Inspection::Stub::ListMappings, request,
                                                  [&](const v1::ListMappingsResponse& portion) {
                                                    return std::all_of(portion.rows().begin(), portion.rows().end(),
                                                                       row);
                                                  });
}

absl::Status RpcStub::ListSessions(const std::function<bool(const v1::SessionInfo&)>& row) {
  return channel_->Read<v1::ListSessionsResponse>(
      *channel_->inspection, &v1::Inspection::Stub::ListSessions, v1::ListSessionsRequest(),
      [&](const v1::ListSessionsResponse& portion) {
        return std::all_of(portion.sessions().begin(), portion.sessions().end(), row);
      });
}

absl::Status RpcStub::Watch(const v1::WatchRequest& request,
                            const std::function<bool(const v1::WatchResponse&)>& portion) {
  return channel_->Read<v1::WatchResponse>(*channel_->inspection, &v1::Inspection::Stub::Watch, request, portion);
}

absl::Status RpcStub::EndSession(const v1::EndSessionRequest& request) {
  return channel_->Call(*channel_->administration, &v1::Administration::Stub::EndSession, request).status();
}

absl::StatusOr<v1::SetLogLevelResponse> RpcStub::SetLogLevel(const v1::SetLogLevelRequest& request) {
  return channel_->Call(*channel_->administration, &v1::Administration::Stub::SetLogLevel, request);
}

absl::StatusOr<v1::OpenResponse> RpcStub::Open(const v1::OpenRequest& request) {
  return channel_->Call(*channel_->files, &v1::Files::Stub::Open, request, Repeat::kNot);
}

absl::Status RpcStub::Close(const v1::CloseRequest& request) {
  return channel_->Call(*channel_->files, &v1::Files::Stub::Close, request).status();
}

absl::Status RpcStub::Ftruncate(const v1::FtruncateRequest& request) {
  return channel_->Call(*channel_->files, &v1::Files::Stub::Ftruncate, request).status();
}

absl::StatusOr<v1::PreadResponse> RpcStub::Pread(const v1::PreadRequest& request) {
  return channel_->Call(*channel_->files, &v1::Files::Stub::Pread, request);
}

absl::Status RpcStub::Pwrite(const v1::PwriteRequest& request) {
  return channel_->Call(*channel_->files, &v1::Files::Stub::Pwrite, request, Repeat::kNot).status();
}

absl::StatusOr<v1::FileStat> RpcStub::Fstat(const v1::FstatRequest& request) {
  return channel_->Call(*channel_->files, &v1::Files::Stub::Fstat, request);
}

absl::StatusOr<v1::FileStat> RpcStub::Stat(const v1::StatRequest& request) {
  return channel_->Call(*channel_->files, &v1::Files::Stub::Stat, request);
}

absl::Status RpcStub::Unlink(const v1::UnlinkRequest& request) {
  return channel_->Call(*channel_->files, &v1::Files::Stub::Unlink, request, Repeat::kNot).status();
}

absl::Status RpcStub::ListFiles(const v1::ListFilesRequest& request,
                                const std::function<bool(const v1::FileStat&)>& file) {
  return channel_->Read<v1::ListFilesResponse>(
      *channel_->files, &v1::Files::Stub::List, request, [&](const v1::ListFilesResponse& portion) {
        return std::all_of(portion.files().begin(), portion.files().end(), file);
      });
}

absl::Status RpcStub::CreateDevice(const v1::CreateDeviceRequest& request) {
  return channel_->Call(*channel_->devices, &v1::Devices::Stub::Create, request, Repeat::kNot).status();
}

absl::Status RpcStub::RemoveDevice(const v1::RemoveDeviceRequest& request) {
  return channel_->Call(*channel_->devices, &v1::Devices::Stub::Remove, request, Repeat::kNot).status();
}

absl::StatusOr<v1::DeviceInfo> RpcStub::DeviceInfo(const v1::DeviceInfoRequest& request) {
  return channel_->Call(*channel_->devices, &v1::Devices::Stub::Info, request);
}

absl::Status RpcStub::ListDevices(const std::function<bool(const v1::DeviceInfo&)>& device) {
  return channel_->Read<v1::DeviceInfo>(*channel_->devices, &v1::Devices::Stub::List, v1::ListDevicesRequest(), device);
}

absl::Status RpcStub::Erase(const v1::EraseRequest& request) {
  return channel_->Call(*channel_->devices, &v1::Devices::Stub::Erase, request).status();
}

absl::Status RpcStub::Mount(const v1::MountRequest& request) {
  return channel_->Call(*channel_->devices, &v1::Devices::Stub::Mount, request, Repeat::kNot).status();
}

absl::Status RpcStub::Unmount(const v1::UnmountRequest& request) {
  return channel_->Call(*channel_->devices, &v1::Devices::Stub::Unmount, request, Repeat::kNot).status();
}

absl::StatusOr<std::unique_ptr<DriverStream>> RpcStub::Drive() {
  if (absl::Status status = channel_->mark.Check(); !status.ok()) return status;
  channel_->Await();
  return std::make_unique<GrpcDriverStream>(*channel_->drivers, channel_->hex_token);
}

absl::Status RpcStub::SetTraced(const v1::SetTracedRequest& request) {
  return channel_->Call(*channel_->ptrace, &v1::Ptrace::Stub::SetTraced, request).status();
}

absl::StatusOr<v1::PeekResponse> RpcStub::Peek(const v1::PeekRequest& request) {
  return channel_->Call(*channel_->ptrace, &v1::Ptrace::Stub::Peek, request);
}

absl::StatusOr<v1::PokeResponse> RpcStub::Poke(const v1::PokeRequest& request) {
  return channel_->Call(*channel_->ptrace, &v1::Ptrace::Stub::Poke, request);
}

absl::StatusOr<v1::ShmgetResponse> RpcStub::Shmget(const v1::ShmgetRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Shmget, request, Repeat::kNot);
}

absl::StatusOr<v1::ShmatResponse> RpcStub::Shmat(const v1::ShmatRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Shmat, request, Repeat::kByNumber);
}

absl::Status RpcStub::Shmdt(const v1::ShmdtRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Shmdt, request, Repeat::kByNumber).status();
}

absl::StatusOr<v1::ShmSegment> RpcStub::ShmStat(const v1::ShmStatRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Stat, request);
}

absl::Status RpcStub::ShmSet(const v1::ShmSetRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Set, request).status();
}

absl::Status RpcStub::ShmRemove(const v1::ShmRemoveRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Remove, request, Repeat::kNot).status();
}

absl::Status RpcStub::ShmList(const std::function<bool(const v1::ShmSegment&)>& segment) {
  return channel_->Read<v1::ShmSegment>(*channel_->sysv_shm, &v1::SysvShm::Stub::List, v1::ShmListRequest(), segment);
}

}  // namespace mapbroker
