// The daemon's services as plain functions. The one file of the library that knows gRPC.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "mapbroker/inspector.h"
#include "mapbroker/v1/administration.pb.h"
#include "mapbroker/v1/devices.pb.h"
#include "mapbroker/v1/drivers.pb.h"
#include "mapbroker/v1/files.pb.h"
#include "mapbroker/v1/inspection.pb.h"
#include "mapbroker/v1/memory.pb.h"
#include "mapbroker/v1/ptrace.pb.h"
#include "mapbroker/v1/sysv_shm.pb.h"

namespace mapbroker {

// One driver's conversation with the daemon. One thread may read while another writes; destroyed after Finish.
class DriverStream {
 public:
  virtual ~DriverStream() = default;
  // False: the stream has ended, and Finish says why.
  virtual bool Read(v1::ToDriver& message) = 0;
  virtual bool Write(const v1::FromDriver& message) = 0;
  virtual void Cancel() = 0;
  virtual absl::Status Finish() = 0;
};

// Thread-safe.
class RpcStub {
 public:
  // Takes a session up again whose daemon was lost; `seen` is what Epoch said before the call that found out.
  using Reconnect = std::function<absl::Status(std::uint64_t seen)>;
  // Calls go to the daemon of `runtime_dir` (absolute) with the session's token, in bytes. `epoch` counts the
  // connections that there were. Without `reconnect` calls fail when the daemon is lost. `is_lost` is asked before
  // every call, so that none finds out that is not made twice, and none comes to a daemon that has taken a stopped
  // one's place.
  RpcStub(const std::string& runtime_dir, const std::string& token, const std::atomic<std::uint64_t>* epoch = nullptr,
          Reconnect reconnect = nullptr, std::function<bool()> is_lost = nullptr);
  // Calls go to a daemon over TLS. EINVAL: a file cannot be read.
  static absl::StatusOr<std::unique_ptr<RpcStub>> Remote(const RemoteOptions& options);
  ~RpcStub();

  absl::StatusOr<v1::MmapResponse> Mmap(const v1::MmapRequest& request);
  absl::Status Munmap(const v1::MunmapRequest& request);
  absl::StatusOr<v1::MremapResponse> Mremap(const v1::MremapRequest& request);

  absl::StatusOr<v1::DaemonStatus> GetStatus();
  // Calls `row` for each row until it returns false.
  absl::Status ListMappings(const v1::ListMappingsRequest& request,
                            const std::function<bool(const v1::MappingRow&)>& row);
  absl::Status ListSessions(const std::function<bool(const v1::SessionInfo&)>& row);
  // Calls `portion` for what happens, until it returns false.
  absl::Status Watch(const v1::WatchRequest& request, const std::function<bool(const v1::WatchResponse&)>& portion);

  absl::Status EndSession(const v1::EndSessionRequest& request);
  absl::StatusOr<v1::SetLogLevelResponse> SetLogLevel(const v1::SetLogLevelRequest& request);

  absl::StatusOr<v1::OpenResponse> Open(const v1::OpenRequest& request);
  absl::Status Close(const v1::CloseRequest& request);
  absl::Status Ftruncate(const v1::FtruncateRequest& request);
  absl::StatusOr<v1::PreadResponse> Pread(const v1::PreadRequest& request);
  absl::Status Pwrite(const v1::PwriteRequest& request);
  absl::StatusOr<v1::FileStat> Fstat(const v1::FstatRequest& request);
  absl::StatusOr<v1::FileStat> Stat(const v1::StatRequest& request);
  absl::Status Unlink(const v1::UnlinkRequest& request);
  absl::Status ListFiles(const v1::ListFilesRequest& request, const std::function<bool(const v1::FileStat&)>& file);

  absl::Status CreateDevice(const v1::CreateDeviceRequest& request);
  absl::Status RemoveDevice(const v1::RemoveDeviceRequest& request);
  absl::StatusOr<v1::DeviceInfo> DeviceInfo(const v1::DeviceInfoRequest& request);
  absl::Status ListDevices(const std::function<bool(const v1::DeviceInfo&)>& device);
  absl::Status Erase(const v1::EraseRequest& request);
  absl::Status Mount(const v1::MountRequest& request);
  absl::Status Unmount(const v1::UnmountRequest& request);

  // X1 in a forked child.
  absl::StatusOr<std::unique_ptr<DriverStream>> Drive();

  absl::Status SetTraced(const v1::SetTracedRequest& request);
  absl::StatusOr<v1::PeekResponse> Peek(const v1::PeekRequest& request);
  absl::StatusOr<v1::PokeResponse> Poke(const v1::PokeRequest& request);

  absl::StatusOr<v1::ShmgetResponse> Shmget(const v1::ShmgetRequest& request);
  absl::StatusOr<v1::ShmatResponse> Shmat(const v1::ShmatRequest& request);
  absl::Status Shmdt(const v1::ShmdtRequest& request);
  absl::StatusOr<v1::ShmSegment> ShmStat(const v1::ShmStatRequest& request);
  absl::Status ShmSet(const v1::ShmSetRequest& request);
  absl::Status ShmRemove(const v1::ShmRemoveRequest& request);
  absl::Status ShmList(const std::function<bool(const v1::ShmSegment&)>& segment);

 private:
  struct Channel;
  RpcStub();
  void MakeStubs();
  std::unique_ptr<Channel> channel_;
};

}  // namespace mapbroker
