// The first two questions: every check of group M in its place.
#include "daemon/nommu/validate.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "daemon/nommu/refusal.h"

namespace mapbroker::nommu {
namespace {

constexpr std::uint32_t kRead = PROT_READ, kReadWrite = PROT_READ | PROT_WRITE;

File DiskFile() {
  File file;
  file.capabilities = kMapCopy;
  file.readable = true;
  return file;
}

File Device() {
  File file;
  file.capabilities = kMapDirect | kReadMap | kWriteMap;
  file.readable = file.writable = true;
  return file;
}

struct Answer {
  int error;
  std::string rule;
  friend bool operator==(const Answer&, const Answer&) = default;
  friend void PrintTo(const Answer& answer, std::ostream* out) {
    *out << strerrorname_np(answer.error) << " by " << answer.rule;
  }
};
const Answer kGranted{0, ""};

Answer Ask(const MapRequest& request, const File* file, const Profile& profile = kClassic) {
  const auto answer = ValidateMmapRequest(request, file, profile);
  return Answer{ErrnoOf(answer.status()), RuleOf(answer.status())};
}

MapRequest Private(std::uint32_t prot = kRead) { return {.length = 4096, .prot = prot, .flags = MAP_PRIVATE}; }
MapRequest Shared(std::uint32_t prot = kRead) { return {.length = 4096, .prot = prot, .flags = MAP_SHARED}; }
MapRequest Anonymous() { return {.length = 4096, .prot = kReadWrite, .flags = MAP_PRIVATE | MAP_ANONYMOUS}; }

template <typename Change>
MapRequest With(MapRequest request, Change change) {
  change(request);
  return request;
}

TEST(ValidateMmapRequest, OffsetMustBeAMultipleOfThePageSizeAlsoWithoutAFile) {
  const File file = DiskFile();
  EXPECT_EQ(Ask(With(Private(), [](auto& r) { r.offset = 100; }), &file), (Answer{EINVAL, "M1"}));
  EXPECT_EQ(Ask(With(Anonymous(), [](auto& r) { r.offset = 2048; }), nullptr), (Answer{EINVAL, "M1"}));
  EXPECT_EQ(Ask(With(Private(), [](auto& r) { r.offset = 100; }), nullptr), (Answer{EINVAL, "M1"}))
      << "the offset is looked at before the descriptor";
}

TEST(ValidateMmapRequest, NeedsAnOpenFileUnlessAnonymous) {
  File path_only = DiskFile();
  path_only.kind = File::Kind::kNotOpen;
  EXPECT_EQ(Ask(Private(), nullptr), (Answer{EBADF, "M2"}));
  EXPECT_EQ(Ask(Private(), &path_only), (Answer{EBADF, "M2"}));
  EXPECT_EQ(Ask(With(Private(), [](auto& r) { r.flags |= MAP_FIXED; }), nullptr), (Answer{EBADF, "M2"}));
  EXPECT_EQ(Ask(Anonymous(), nullptr), kGranted);
}

TEST(ValidateMmapRequest, AddressesCannotBeChosen) {
  const auto fixed = With(Anonymous(), [](auto& r) { r.flags |= MAP_FIXED; });
  const auto hint = With(Anonymous(), [](auto& r) { r.address = 0x10000; });
  EXPECT_EQ(Ask(fixed, nullptr, kClassic), (Answer{EINVAL, "M3"}));
  EXPECT_EQ(Ask(fixed, nullptr, kModern), (Answer{EINVAL, "M3"}));
  EXPECT_EQ(Ask(hint, nullptr, kClassic), (Answer{EINVAL, "M3"}));
  EXPECT_EQ(Ask(hint, nullptr, kModern), kGranted) << "P1: modern ignores a hint";
}

TEST(ValidateMmapRequest, ExactlyOneOfSharedAndPrivate) {
  for (const std::uint32_t type : {0, 3, 7}) {
    EXPECT_EQ(Ask(With(Anonymous(), [&](auto& r) { r.flags = type | MAP_ANONYMOUS; }), nullptr),
              (Answer{EINVAL, "M4"}));
  }
}

TEST(ValidateMmapRequest, LengthsThatCannotBe) {
  const File file = DiskFile();
  EXPECT_EQ(Ask(With(Anonymous(), [](auto& r) { r.length = 0; }), nullptr), (Answer{EINVAL, "M5"}));
  EXPECT_EQ(Ask(With(Anonymous(), [](auto& r) { r.length = UINT64_MAX; }), nullptr), (Answer{ENOMEM, "M6"}));
  EXPECT_EQ(Ask(With(Anonymous(), [](auto& r) { r.length = UINT64_MAX - 4094; }), nullptr), (Answer{ENOMEM, "M6"}));
  EXPECT_EQ(Ask(With(Anonymous(), [](auto& r) { r.length = UINT64_MAX - 4095; }), nullptr), kGranted);
  EXPECT_EQ(Ask(With(Private(), [](auto& r) { r.offset = UINT64_MAX - 4095; }), &file), (Answer{EOVERFLOW, "M7"}));
}

TEST(ValidateMmapRequest, KindsThatCannotBeMapped) {
  File pipe, socket;
  pipe.kind = File::Kind::kNoMmap;
  socket.kind = File::Kind::kNoCapabilities;
  for (const auto& request : {Private(), Shared(), Private(kReadWrite)}) {
    EXPECT_EQ(Ask(request, &pipe), (Answer{ENODEV, "M8"}));
    EXPECT_EQ(Ask(request, &socket), (Answer{EINVAL, "M9"}));
  }
  EXPECT_EQ(Ask(With(Private(), [](auto& r) { r.flags = 0; }), &pipe), (Answer{EINVAL, "M4"}))
      << "arguments are looked at before the file";
}

TEST(ValidateMmapRequest, WriteOnlyDescriptorsAreRefused) {
  File file = DiskFile();
  file.readable = false;
  file.writable = true;
  EXPECT_EQ(Ask(Private(), &file, kModern), (Answer{EACCES, "M11"}));
  EXPECT_EQ(Ask(Shared(), &file, kModern), (Answer{EACCES, "M11"})) << "modern looks at the mode first";
  EXPECT_EQ(Ask(Private(), &file, kClassic), (Answer{EACCES, "P5"})) << "classic cannot make the copy";
  EXPECT_EQ(Ask(Shared(), &file, kClassic), (Answer{ENODEV, "M15"})) << "classic does not look first";
}

TEST(ValidateMmapRequest, SharedMappingsOfAFile) {
  File file = DiskFile();
  EXPECT_EQ(Ask(Shared(kReadWrite), &file), (Answer{EACCES, "M12"}));
  EXPECT_EQ(Ask(Shared(), &file), (Answer{ENODEV, "M15"}));
  file.writable = true;
  EXPECT_EQ(Ask(Shared(kReadWrite), &file), (Answer{ENODEV, "M15"}));
  file.append_only = true;
  EXPECT_EQ(Ask(Shared(), &file), (Answer{EACCES, "M13"}));
  file.append_only = false;
  file.mandatory_lock = true;
  EXPECT_EQ(Ask(Shared(), &file), (Answer{EAGAIN, "M14"}));
}

TEST(ValidateMmapRequest, DevicesThatAreMemory) {
  File device = Device();
  EXPECT_EQ(Ask(Shared(kReadWrite), &device), kGranted);
  EXPECT_EQ(Ask(Private(), &device), (Answer{ENODEV, "M16"})) << "a private mapping needs MAP_COPY";
  EXPECT_EQ(Ask(Shared(PROT_READ | PROT_EXEC), &device), (Answer{EINVAL, "M18"}));
  device.capabilities |= kMapCopy;
  EXPECT_EQ(DetermineKind(Private(), *ValidateMmapRequest(Private(), &device, kClassic)), MappingKind::kDirect);
  EXPECT_EQ(DetermineKind(Private(kReadWrite), *ValidateMmapRequest(Private(kReadWrite), &device, kClassic)),
            MappingKind::kPrivateCopy)
      << "M17: private and writable is always a copy";
  const MapRequest text = Private(PROT_READ | PROT_EXEC);
  EXPECT_EQ(DetermineKind(text, *ValidateMmapRequest(text, &device, kClassic)), MappingKind::kSharedCopy)
      << "M18, M20: what the device does not allow on its memory is copied";
}

TEST(ValidateMmapRequest, NothingIsExecutedFromANoexecMount) {
  File file = DiskFile();
  file.noexec = true;
  EXPECT_EQ(Ask(Private(PROT_READ | PROT_EXEC), &file), (Answer{EPERM, "M19"}));
  EXPECT_EQ(Ask(Private(PROT_EXEC), &file), (Answer{EPERM, "M19"}));
  EXPECT_EQ(Ask(Private(), &file), kGranted);
}

TEST(ValidateMmapRequest, FlagsThatChangeNothing) {
  const File file = DiskFile();
  for (const int flag : {MAP_DENYWRITE, MAP_EXECUTABLE, MAP_GROWSDOWN, MAP_HUGETLB, MAP_LOCKED, MAP_NONBLOCK,
                         MAP_NORESERVE, MAP_POPULATE, MAP_STACK, MAP_SYNC, 0x8000000}) {
    EXPECT_EQ(Ask(With(Private(), [&](auto& r) { r.flags |= static_cast<std::uint32_t>(flag); }), &file), kGranted);
  }
}

TEST(DetermineKind, IsWhatTheRequestAsksFor) {
  const File file = DiskFile();
  const auto kind_of = [&](const MapRequest& request) {
    return DetermineKind(request, *ValidateMmapRequest(request, &file, kClassic));
  };
  EXPECT_EQ(kind_of(Anonymous()), MappingKind::kAnonymous);
  EXPECT_EQ(kind_of(Private()), MappingKind::kSharedCopy);
  EXPECT_EQ(kind_of(Private(PROT_READ | PROT_EXEC)), MappingKind::kSharedCopy);
  EXPECT_EQ(kind_of(Private(kReadWrite)), MappingKind::kPrivateCopy);
  EXPECT_EQ(kind_of(Private(PROT_WRITE)), MappingKind::kPrivateCopy);
}

}  // namespace
}  // namespace mapbroker::nommu
