// D11: the pool itself, at offset = pool address, for sessions that configuration allows it to.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "daemon/backing/device_kinds.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {
namespace {

// What a mapping of it shows is not kept for it: whose memory that is decides.
class MemDevice final : public Device {
 public:
  MemDevice(std::span<std::byte> pool, uid_t allowed) : pool_(pool), allowed_(allowed) {}

  nommu::Capabilities capabilities() const override {
    return nommu::kMapDirect | nommu::kReadMap | nommu::kWriteMap | nommu::kExecMap;
  }
  absl::Status MayOpen(const Credentials& who, unsigned) const override {
    if (who.privileged() || who.uid == allowed_) return absl::OkStatus();
    return nommu::Refuse(EPERM, "D11", absl::StrCat("user ", who.uid, " may not open the pool as a device"));
  }
  std::uint64_t size() const override { return pool_.size(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    if (offset >= pool_.size()) return std::size_t{0};
    const std::size_t count = std::min<std::size_t>(into.size(), pool_.size() - offset);
    std::memcpy(into.data(), pool_.data() + offset, count);
    return count;
  }
  absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request) override {
    if (request.offset < pool_.size() && request.length <= pool_.size() - request.offset) return request.offset;
    return nommu::Refuse(EINVAL, "D11", absl::StrCat("the pool has only ", pool_.size(), " bytes"));
  }
  bool Restored(nommu::PoolAddress, std::uint64_t) override { return true; }

 private:
  const std::span<std::byte> pool_;
  const uid_t allowed_;
};

absl::StatusOr<std::shared_ptr<Device>> Make(const DeviceSpec& spec, const DeviceEnvironment& environment) {
  // Only the administrator's configuration makes one, and says for whom.
  if (!spec.owner.privileged()) {
    return nommu::Refuse(EPERM, "D11", "a device of kind mem is made by root or by the configuration file alone");
  }
  DeviceOptions options(spec);
  const auto allowed = options.Number("uid", 0, UINT32_MAX, 0);
  if (!allowed.ok()) return allowed.status();
  if (absl::Status status = options.Finish(); !status.ok()) return status;
  return std::make_shared<MemDevice>(environment.pool, static_cast<uid_t>(*allowed));
}

}  // namespace

const DeviceKind kMemDevice{"mem", Make};

}  // namespace mapbroker::backing
