#include "daemon/backing/remembered.h"

#include <cerrno>
#include <string>
#include <utility>

#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {
namespace {

class Remembered final : public Backing {
 public:
  Remembered(const record::File& file, std::shared_ptr<Device> device) : file_(file), device_(std::move(device)) {
    id = {.device = file.device(), .inode = file.inode(), .birth = file.birth()};
    capabilities = file.capabilities();
    readable = true;  // so that it is told why it cannot be read
  }

  absl::StatusOr<std::uint64_t> Size() const override { return Gone(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t, std::span<std::byte>) const override { return Gone(); }
  std::string Path() const override { return file_.path(); }
  void Close(nommu::PoolAddress start, std::uint64_t length, bool last) const override {
    if (device_ != nullptr) device_->Close(start, length, last);
  }
  bool Restored(nommu::PoolAddress start, std::uint64_t length) const override {
    return device_ != nullptr && device_->Restored(start, length);
  }
  record::File Record() const override { return file_; }

 private:
  static absl::Status Gone() {
    return nommu::Refuse(ESTALE, "", "the file was open in a daemon that has ended: open it anew");
  }

  const record::File file_;
  const std::shared_ptr<Device> device_;
};

}  // namespace

std::shared_ptr<Backing> Remember(const record::File& file, std::shared_ptr<Device> device) {
  return std::make_shared<Remembered>(file, std::move(device));
}

}  // namespace mapbroker::backing
