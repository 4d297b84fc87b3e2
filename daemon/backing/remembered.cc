#include "daemon/backing/remembered.h"

#include <cerrno>
#include <string>

#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {
namespace {

class Remembered final : public Backing {
 public:
  Remembered(const record::File& file, shm::HeldPages& pages) : path_(file.path()), pages_(pages) {
    id = {.device = file.device(), .inode = file.inode(), .birth = file.birth()};
    capabilities = file.capabilities();
  }

  absl::StatusOr<std::uint64_t> Size() const override { return Gone(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t, std::span<std::byte>) const override { return Gone(); }
  std::string Path() const override { return path_; }
  void Close(nommu::PoolAddress start, std::uint64_t length) const override {
    pages_.Drop(shm::Run{start / shm::kPageSize, nommu::PagesOf(start + length) - start / shm::kPageSize});
  }

 private:
  static absl::Status Gone() {
    return nommu::Refuse(ESTALE, "", "the file was open in a daemon that has ended: open it anew");
  }

  const std::string path_;
  shm::HeldPages& pages_;
};

}  // namespace

std::shared_ptr<Backing> Remember(const record::File& file, shm::HeldPages& pages) {
  return std::make_shared<Remembered>(file, pages);
}

}  // namespace mapbroker::backing
