// Random calls of several address spaces to a broker, whose every answer is held against the literal model: errno,
// places, contents. The broker checks its own structures after each step.
#include <fcntl.h>
#include <fuzzer/FuzzedDataProvider.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "daemon/broker.h"
#include "daemon/nommu/refusal.h"
#include "spdlog/spdlog.h"
#include "tests/fuzz/literal_model.h"

namespace mapbroker::fuzz {
namespace {

constexpr int kSpaces = 3, kOrdinaryFiles = 2, kRamFiles = 2;
constexpr std::uint64_t kMaxMapCount = 4;
constexpr std::uint64_t kPoolPages = 4096;  // more than a sequence can fill
constexpr std::uint64_t kFilePages = 8;

// With FUZZ_TRACE in the environment every call is printed, to see what a finding is.
void Trace(const std::string& call) {
  static const bool on = std::getenv("FUZZ_TRACE") != nullptr;
  if (on) std::fprintf(stderr, "%s\n", call.c_str());
}

// An ordinary file whose contents the harness writes.
class OrdinaryFile final : public backing::Backing {
 public:
  OrdinaryFile(std::shared_ptr<std::string> contents, std::uint64_t inode, int mode) : contents_(std::move(contents)) {
    id = {.device = 1, .inode = inode};
    capabilities = nommu::kMapCopy;
    readable = mode != O_WRONLY;
    writable = mode != O_RDONLY;
  }
  absl::StatusOr<std::uint64_t> Size() const override { return contents_->size(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    if (offset >= contents_->size()) return std::size_t{0};
    const std::size_t count = std::min<std::size_t>(into.size(), contents_->size() - offset);
    std::memcpy(into.data(), contents_->data() + offset, count);
    return count;
  }
  std::string Path() const override { return "ordinary"; }

 private:
  const std::shared_ptr<std::string> contents_;
};

// Of which only what is touched costs time.
class PoolMemory {
 public:
  PoolMemory() {
    void* const at = mmap(nullptr, kPoolPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) std::abort();
    bytes_ = {static_cast<std::byte*>(at), kPoolPages * kPage};
  }
  ~PoolMemory() { munmap(bytes_.data(), bytes_.size()); }
  PoolMemory(const PoolMemory&) = delete;
  PoolMemory& operator=(const PoolMemory&) = delete;
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

class Harness {
 public:
  Harness(FuzzedDataProvider& input, bool classic, bool keeps_slack)
      : input_(input),
        pages_(memory_, /*prefault=*/false),
        broker_(classic ? nommu::kClassic : nommu::kModern, pages_, memory_,
                Limits{.map = {kMaxMapCount}, .nr_trim_pages = keeps_slack ? 0u : 1u}),
        model_(classic, kPoolPages * kPage, kMaxMapCount, keeps_slack) {
    for (int space = 0; space < kSpaces; ++space) sessions_.push_back(NewSession(space));
    for (int file = 0; file < kOrdinaryFiles + kRamFiles; ++file) {
      ModelFile& model = model_.files().emplace_back();
      model.ram = file >= kOrdinaryFiles;
      if (!model.ram) {
        contents_.push_back(std::make_shared<std::string>());
        Write(file, 0, 5 * kPage + 100, static_cast<std::uint8_t>('A' + file));
      }
    }
  }

  void Step() {
    switch (input_.ConsumeIntegralInRange(0, 15)) {
      case 0:
        return End(Space());
      case 1:
        return Truncate();
      case 2:
        return input_.ConsumeBool() ? Unlink() : Truncate();
      case 3:
      case 4:
        return Write(File(), Bytes(kFilePages), Bytes(2) + 1, Byte());
      case 5:
      case 6:
        return Store();
      case 7:
      case 8:
        return Munmap();
      case 9:
      case 10:
        return Mremap();
      default:
        return Mmap();
    }
  }

  // U2, U5, F6: when nothing is mapped and no file is left, all of the pool is free again, and clean.
  void Finish() {
    for (int space = 0; space < kSpaces; ++space) End(space);
    for (int file = kOrdinaryFiles; file < kOrdinaryFiles + kRamFiles; ++file) Unlink(file);
    pages_.WaitUntilIdle();
    const auto statistics = pages_.statistics();
    Demand(statistics.free == statistics.total,
           absl::StrCat("of ", statistics.total, " bytes only ", statistics.free, " are free at the end"));
  }

 private:
  std::shared_ptr<session::Session> NewSession(int space) {
    const pid_t pid = 1000 + space;
    const uid_t uid = static_cast<uid_t>(space);
    return std::make_shared<session::Session>(++sessions_made_, Credentials{pid, uid, uid}, false,
                                              broker_.OpenSpace(pid));
  }
  int Space() { return input_.ConsumeIntegralInRange(0, kSpaces - 1); }
  int File() { return input_.ConsumeIntegralInRange(0, kOrdinaryFiles + kRamFiles - 1); }
  std::uint8_t Byte() { return input_.ConsumeIntegral<std::uint8_t>(); }
  // Around page boundaries more often than not.
  std::uint64_t Bytes(std::uint64_t most_pages) {
    const std::uint64_t pages = input_.ConsumeIntegralInRange<std::uint64_t>(0, most_pages);
    static constexpr std::int64_t kNear[] = {0, 0, 0, 0, 1, -1, 100, 2048};
    const std::int64_t bytes = static_cast<std::int64_t>(pages * kPage) + input_.PickValueInArray(kNear);
    return bytes < 0 ? 0 : static_cast<std::uint64_t>(bytes);
  }

  void Demand(bool holds, const std::string& what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what.c_str());
    std::abort();
  }
  void DemandErrno(const char* call, const absl::Status& got, int wanted) {
    Demand(nommu::ErrnoOf(got) == wanted, std::string(call) + ": wanted errno " + std::to_string(wanted) + ", got " +
                                              std::to_string(nommu::ErrnoOf(got)) + " " + std::string(got.message()));
    const std::string difference = model_.Compare(memory_);
    Demand(difference.empty(), std::string(call) + ": " + difference);
  }

  std::shared_ptr<backing::Backing> Open(int file, int mode) {
    if (file < kOrdinaryFiles) {
      return std::make_shared<OrdinaryFile>(contents_[static_cast<std::size_t>(file)],
                                            static_cast<std::uint64_t>(file) + 1, mode);
    }
    return *broker_.ram_files().Open("ram:/" + std::to_string(file), mode | O_CREAT, 0666, Credentials{});
  }
  std::shared_ptr<backing::RamFile> OpenRam(int file, int mode) {
    return std::dynamic_pointer_cast<backing::RamFile>(Open(file, mode));
  }
  // Where the rules leave it to the implementation whether a ram file's pages adjoin.
  bool IsContiguous(const backing::Backing& file, std::uint64_t offset, std::uint64_t length) {
    if (length == 0 || length > kPoolPages * kPage || offset % kPage != 0) return false;
    const std::uint64_t rounded = (length + kPage - 1) / kPage * kPage;
    const auto area = file.GetUnmappedArea({.length = rounded, .flags = MAP_SHARED, .offset = offset});
    if (area.ok()) file.Close(*area, rounded, true);
    return area.ok();
  }

  void Mmap() {
    static constexpr std::uint32_t kProts[] = {PROT_READ,  PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC,
                                               PROT_WRITE, PROT_NONE};
    static constexpr std::uint32_t kFlags[] = {MAP_PRIVATE,
                                               MAP_PRIVATE,
                                               MAP_PRIVATE,
                                               MAP_SHARED,
                                               MAP_SHARED,
                                               MAP_PRIVATE | MAP_ANONYMOUS,
                                               MAP_SHARED | MAP_ANONYMOUS,
                                               MAP_PRIVATE | MAP_FIXED,
                                               0,
                                               MAP_SHARED | MAP_PRIVATE,
                                               MAP_PRIVATE | MAP_POPULATE};
    static constexpr std::uint64_t kOddLengths[] = {0, UINT64_MAX, UINT64_MAX - kPage + 1, std::uint64_t{1} << 40};
    const int space = Space();
    const int file = input_.ConsumeIntegralInRange(-1, kOrdinaryFiles + kRamFiles - 1);
    const int mode = input_.PickValueInArray({O_RDONLY, O_RDWR, O_RDWR, O_WRONLY});
    const bool odd = input_.ConsumeIntegralInRange(0, 19) == 0;
    ModelRequest wanted{.length = odd ? input_.PickValueInArray(kOddLengths) : Bytes(4) + 1,
                        .offset = input_.ConsumeIntegralInRange<std::uint64_t>(0, kFilePages) * kPage,
                        .address = input_.ConsumeIntegralInRange(0, 19) == 0 ? kPage : 0,
                        .prot = input_.PickValueInArray(kProts),
                        .flags = input_.PickValueInArray(kFlags),
                        .file = file,
                        .readable = mode != O_WRONLY,
                        .writable = mode != O_RDONLY};
    if (odd && input_.ConsumeBool()) wanted.offset = UINT64_MAX - kPage + 1;
    if (odd && input_.ConsumeBool()) wanted.offset += 1;

    session::Session& session = *sessions_[static_cast<std::size_t>(space)];
    const std::shared_ptr<backing::Backing> backing = file < 0 ? nullptr : Open(file, mode);
    const bool contiguous = backing != nullptr && IsContiguous(*backing, wanted.offset, wanted.length);
    const int fd = backing == nullptr ? -1 : *session.AddFile(backing);
    const auto grant = broker_.Mmap(session,
                                    {.length = wanted.length,
                                     .prot = wanted.prot,
                                     .flags = wanted.flags,
                                     .offset = wanted.offset,
                                     .address = wanted.address},
                                    fd);
    if (fd >= 0) session.CloseFile(fd).IgnoreError();
    const int error = model_.Mmap(space, wanted, contiguous);
    Trace(absl::StrCat("mmap space ", space, " file ", file, " offset ", wanted.offset, " length ", wanted.length,
                       " prot ", wanted.prot, " flags ", wanted.flags, contiguous ? " contiguous" : "", " -> ",
                       nommu::ErrnoOf(grant.status()), grant.ok() ? absl::StrCat(" at ", grant->address) : ""));
    Demand(nommu::ErrnoOf(grant.status()) == error, "mmap: wanted errno " + std::to_string(error) + ", got " +
                                                        std::to_string(nommu::ErrnoOf(grant.status())) + " " +
                                                        std::string(grant.status().message()));
    if (grant.ok()) {
      const std::string fault = model_.Placed(grant->address, grant->length);
      Demand(fault.empty(), "mmap: " + fault);
    }
    DemandErrno("mmap", grant.status(), error);
  }

  // A mapping of the model, null if there is none.
  const LiteralModel::Mapping* Pick() {
    const auto& mappings = model_.mappings();
    if (mappings.empty()) return nullptr;
    return &mappings[input_.ConsumeIntegralInRange<std::size_t>(0, mappings.size() - 1)];
  }
  // Its own space, or now and then another's.
  int SpaceFor(const LiteralModel::Mapping& mapping) {
    return input_.ConsumeIntegralInRange(0, 9) == 0 ? Space() : mapping.space;
  }

  void Munmap() {
    const LiteralModel::Mapping* mapping = Pick();
    if (mapping == nullptr) return;
    const int space = SpaceFor(*mapping);
    const bool whole = input_.ConsumeBool();
    const std::uint64_t address = mapping->start + (whole ? 0 : Bytes(2));
    const std::uint64_t length = whole                                       ? mapping->length
                                 : input_.ConsumeIntegralInRange(0, 19) == 0 ? UINT64_MAX
                                                                             : Bytes(3);
    const absl::Status status = broker_.Munmap(*sessions_[static_cast<std::size_t>(space)], address, length);
    Trace(absl::StrCat("munmap space ", space, " at ", address, " length ", length, " -> ", nommu::ErrnoOf(status)));
    DemandErrno("munmap", status, model_.Munmap(space, address, length));
  }

  void Mremap() {
    const LiteralModel::Mapping* mapping = Pick();
    // How much slack a small object has is the implementation's choice (P6).
    if (mapping == nullptr || mapping->length < kPage) return;
    const int space = SpaceFor(*mapping);
    nommu::RemapRequest request{.address = mapping->start, .old_length = mapping->length, .new_length = Bytes(5)};
    switch (input_.ConsumeIntegralInRange(0, 9)) {
      case 0:
        request.address += input_.ConsumeBool() ? kPage : 1;
        break;
      case 1:
        request.old_length = Bytes(3);
        break;
      case 2:
        request.flags = MREMAP_FIXED;
        request.new_address = input_.ConsumeBool() ? request.address : request.address + kPage;
        break;
      case 3:
        request.new_length = UINT64_MAX;
        break;
      default:
        break;
    }
    const auto length = broker_.Mremap(*sessions_[static_cast<std::size_t>(space)], request);
    Trace(absl::StrCat("mremap space ", space, " at ", request.address, " from ", request.old_length, " to ",
                       request.new_length, " -> ", nommu::ErrnoOf(length.status())));
    DemandErrno("mremap", length.status(),
                model_.Mremap(space, request.address, request.old_length, request.new_length, request.flags,
                              request.new_address));
  }

  void End(int number) {
    const auto space = static_cast<std::size_t>(number);
    while (!broker_.LeaveSpace(sessions_[space]->space(), sessions_[space]->peer().pid)) {
    }
    Trace(absl::StrCat("exit space ", space));
    model_.End(number);
    sessions_[space] = NewSession(number);
    DemandErrno("exit", absl::OkStatus(), 0);
  }

  void Truncate() {
    const int file = input_.ConsumeIntegralInRange(kOrdinaryFiles, kOrdinaryFiles + kRamFiles - 1);
    const int mode = input_.PickValueInArray({O_RDWR, O_RDWR, O_RDONLY});
    const std::uint64_t size = Bytes(kFilePages);
    const absl::Status status = broker_.Ftruncate(*OpenRam(file, mode), size);
    Trace(absl::StrCat("ftruncate file ", file, " to ", size, " -> ", nommu::ErrnoOf(status)));
    DemandErrno("ftruncate", status, model_.Ftruncate(file, mode != O_RDONLY, size));
  }

  void Unlink() { Unlink(input_.ConsumeIntegralInRange(kOrdinaryFiles, kOrdinaryFiles + kRamFiles - 1)); }
  void Unlink(int file) {
    Open(file, O_RDWR);  // so that there is one
    const absl::Status status = broker_.ram_files().Unlink(absl::StrCat("ram:/", file), Credentials{});
    Trace(absl::StrCat("unlink file ", file, " -> ", nommu::ErrnoOf(status)));
    model_.Unlink(file);
    DemandErrno("unlink", status, 0);
  }

  void Write(int file, std::uint64_t offset, std::uint64_t count, std::uint8_t byte) {
    const std::string text(count, static_cast<char>(byte));
    model_.Write(file, offset, count, byte);
    Trace(absl::StrCat("write file ", file, " at ", offset, " count ", count));
    if (file < kOrdinaryFiles) {
      std::string& contents = *contents_[static_cast<std::size_t>(file)];
      if (contents.size() < offset + count) contents.resize(offset + count);
      contents.replace(offset, count, text);
    } else {
      DemandErrno("write", OpenRam(file, O_RDWR)->node().Write(offset, false, std::as_bytes(std::span(text))), 0);
    }
    const std::vector<std::uint8_t> wanted = model_.Read(file, 0, 16 * kPage);
    std::vector<std::byte> got(16 * kPage);
    const auto read = Open(file, O_RDONLY)->Read(0, got);
    Demand(read.ok() && *read == wanted.size() && std::memcmp(got.data(), wanted.data(), wanted.size()) == 0,
           "the file does not hold what was written");
    DemandErrno("write", absl::OkStatus(), 0);
  }

  void Store() {
    const LiteralModel::Mapping* mapping = Pick();
    if (mapping == nullptr || (mapping->prot & PROT_WRITE) == 0) return;
    const std::uint64_t offset = input_.ConsumeIntegralInRange<std::uint64_t>(0, mapping->length - 1);
    const std::uint64_t count = input_.ConsumeIntegralInRange<std::uint64_t>(1, mapping->length - offset);
    const std::uint8_t byte = Byte();
    std::memset(memory_.data() + mapping->start + offset, byte, count);
    model_.Store(*mapping, offset, count, byte);
    DemandErrno("store", absl::OkStatus(), 0);
  }

  FuzzedDataProvider& input_;
  const PoolMemory pool_;
  const std::span<std::byte> memory_ = pool_.bytes();
  shm::PagePool pages_;
  Broker broker_;
  LiteralModel model_;
  std::uint64_t sessions_made_ = 0;
  std::vector<std::shared_ptr<session::Session>> sessions_;
  std::vector<std::shared_ptr<std::string>> contents_;
};

}  // namespace
}  // namespace mapbroker::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const bool quiet = [] {
    spdlog::set_level(spdlog::level::off);  // requests that are too large are logged
    return true;
  }();
  (void)quiet;
  FuzzedDataProvider input(data, size);
  const auto variant = input.ConsumeIntegral<std::uint8_t>();
  mapbroker::fuzz::Harness harness(input, (variant & 1) != 0, (variant & 2) != 0);
  for (int steps = 0; steps < 100 && input.remaining_bytes() > 0; ++steps) harness.Step();
  harness.Finish();
  return 0;
}
