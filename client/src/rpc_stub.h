// The Memory service as plain functions. The one file of the library that knows gRPC.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "mapbroker/v1/memory.pb.h"

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

 private:
  struct Channel;
  std::unique_ptr<Channel> channel_;
};

}  // namespace mapbroker
