// The daemon's services as plain functions. The one file of the library that knows gRPC.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "mapbroker/v1/memory.pb.h"
#include "mapbroker/v1/ram_files.pb.h"
#include "mapbroker/v1/sysv_shm.pb.h"

namespace mapbroker {

// Thread-safe.
class RpcStub {
 public:
  // Calls go to the daemon of `runtime_dir` (absolute) with the session's token, in bytes.
  RpcStub(const std::string& runtime_dir, const std::string& token);
  ~RpcStub();

  absl::StatusOr<v1::MmapResponse> Mmap(const v1::MmapRequest& request);
  absl::Status Munmap(const v1::MunmapRequest& request);
  absl::StatusOr<v1::MremapResponse> Mremap(const v1::MremapRequest& request);
  // Calls `row` for each row until it returns false.
  absl::Status ListMappings(const v1::ListMappingsRequest& request,
                            const std::function<bool(const v1::MappingRow&)>& row);
  absl::StatusOr<v1::PoolStatistics> GetPoolStatistics();

  absl::StatusOr<v1::RamOpenResponse> RamOpen(const v1::RamOpenRequest& request);
  absl::Status RamClose(const v1::RamCloseRequest& request);
  absl::Status RamFtruncate(const v1::RamFtruncateRequest& request);
  absl::StatusOr<v1::RamPreadResponse> RamPread(const v1::RamPreadRequest& request);
  absl::Status RamPwrite(const v1::RamPwriteRequest& request);
  absl::StatusOr<v1::RamStat> RamFstat(const v1::RamFstatRequest& request);
  absl::StatusOr<v1::RamStat> RamStat(const v1::RamStatRequest& request);
  absl::Status RamUnlink(const v1::RamUnlinkRequest& request);
  absl::Status RamList(const v1::RamListRequest& request, const std::function<bool(const v1::RamStat&)>& file);

  absl::StatusOr<v1::ShmgetResponse> Shmget(const v1::ShmgetRequest& request);
  absl::StatusOr<v1::ShmatResponse> Shmat(const v1::ShmatRequest& request);
  absl::Status Shmdt(const v1::ShmdtRequest& request);
  absl::StatusOr<v1::ShmSegment> ShmStat(const v1::ShmStatRequest& request);
  absl::Status ShmSet(const v1::ShmSetRequest& request);
  absl::Status ShmRemove(const v1::ShmRemoveRequest& request);
  absl::Status ShmList(const std::function<bool(const v1::ShmSegment&)>& segment);

 private:
  struct Channel;
  std::unique_ptr<Channel> channel_;
};

}  // namespace mapbroker
