// File system images: the recorded kernel's own, and what is made of broken ones.
#include "daemon/backing/image.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "daemon/broker.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {
namespace {

using nommu::ErrnoOf;

constexpr std::uint64_t kPage = nommu::kPageSize;

std::string Fixture(const std::string& name) {
  std::ifstream file(FIXTURES "/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// An image in ordinary memory.
class Bytes final : public Device {
 public:
  explicit Bytes(std::string bytes) : bytes_(std::move(bytes)) {}
  nommu::Capabilities capabilities() const override { return nommu::kMapCopy; }
  std::uint64_t size() const override { return bytes_.size(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    if (offset >= bytes_.size()) return std::size_t{0};
    return bytes_.copy(reinterpret_cast<char*>(into.data()), into.size(), offset);
  }

 private:
  const std::string bytes_;
};

std::string Contents(const ImageFile& file) {
  std::string text(file.size(), '?');
  if (text.empty()) return text;
  const auto read = file.Read(0, std::as_writable_bytes(std::span(text)));
  EXPECT_TRUE(read.ok()) << read.status();
  return text;
}

// Every byte of page n is 0x41 + n mod 26, as the recordings say.
void ExpectPages(const std::string& contents) {
  for (std::size_t at = 0; at < contents.size(); ++at) {
    ASSERT_EQ(contents[at], static_cast<char>(0x41 + at / kPage % 26)) << at;
  }
}

TEST(Romfs, HoldsTheFilesOfTheRecordings) {
  const auto files = ReadRomfs(std::make_shared<Bytes>(Fixture("romfs.img")));
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_TRUE(files->contains("big"));
  ExpectPages(Contents(*files->at("big")));
  EXPECT_GT(files->at("big")->size(), 4 * kPage);
  EXPECT_TRUE(files->at("big")->PlaceOf(0, 2).has_value());
}

TEST(Cramfs, HoldsTheFilesOfTheRecordings) {
  const auto files = ReadCramfs(std::make_shared<Bytes>(Fixture("cramfs.img")));
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_TRUE(files->contains("xip"));
  for (const auto& [name, file] : *files) EXPECT_EQ(Contents(*file).size(), file->size()) << name;
  ExpectPages(Contents(*files->at("xip")));
  EXPECT_TRUE(files->at("xip")->PlaceOf(0, 2).has_value());
  EXPECT_FALSE(files->at("frag")->PlaceOf(0, 2).has_value());
}

TEST(Images, WhatIsNoImageIsToldFromABrokenOne) {
  const std::string romfs = Fixture("romfs.img"), cramfs = Fixture("cramfs.img");
  const auto device = [](std::string bytes) { return std::make_shared<Bytes>(std::move(bytes)); };
  EXPECT_EQ(ErrnoOf(ReadRomfs(device(cramfs)).status()), EINVAL);
  EXPECT_EQ(ErrnoOf(ReadCramfs(device(romfs)).status()), EINVAL);
  EXPECT_EQ(ErrnoOf(ReadRomfs(device("")).status()), EINVAL);
  EXPECT_EQ(ErrnoOf(ReadCramfs(device("")).status()), EINVAL);
  EXPECT_EQ(ErrnoOf(ReadRomfs(device(romfs.substr(0, 5000))).status()), EIO);
  EXPECT_EQ(ErrnoOf(ReadCramfs(device(cramfs.substr(0, 5000))).status()), EIO);
  std::string spoilt = cramfs;
  spoilt[32] = 1;  // the fixture states no checksum: now it states a wrong one
  EXPECT_EQ(ErrnoOf(ReadCramfs(device(spoilt)).status()), EIO);
}

// Whatever a byte says, the answer is an error or files that can be read or cannot: nothing else.
TEST(Images, SpoiltOnesHarmNobody) {
  std::mt19937 random(1);
  for (const char* name : {"romfs.img", "cramfs.img"}) {
    const std::string good = Fixture(name);
    for (int i = 0; i < 300; ++i) {
      std::string bytes = good;
      for (int spoilt = 0; spoilt < 3; ++spoilt) bytes[random() % 2048] = static_cast<char>(random());
      const auto device = std::make_shared<Bytes>(bytes);
      for (const auto& files : {ReadRomfs(device), ReadCramfs(device)}) {
        if (!files.ok()) continue;
        for (const auto& [path, file] : *files) {
          std::vector<std::byte> page(kPage);
          for (std::uint64_t at = 0; at < file->size() && at < 64 * kPage; at += kPage)
            file->Read(at, page).IgnoreError();
          file->PlaceOf(0, 16);
        }
      }
    }
  }
}

TEST(Mounts, AFileOfARomIsMappedStraightOutOfTheImage) {
  std::vector<std::byte> memory(512 * kPage);
  shm::PagePool pages(memory, /*prefault=*/false);
  Broker broker(nommu::kClassic, pages, memory);
  const Credentials root{1, 0, 0};
  session::Session session(1, root, false, broker.OpenSpace(1));
  DeviceSpec spec;
  spec.name = "dev:/rom";
  spec.kind = "flash";
  spec.options = {{"chip", "rom"}, {"size", "1M"}};
  const std::string image = Fixture("romfs.img");
  const auto ram = broker.ram_files().Open("ram:/image", O_RDWR | O_CREAT, 0600, root);
  ASSERT_TRUE((*ram)->Write(0, std::as_bytes(std::span(image))).ok());
  spec.contents = *ram;
  ASSERT_TRUE(broker.devices().Create(spec).ok());
  ASSERT_TRUE(broker.mounts().Mount("mnt:/rom", "dev:/rom", "", root).ok());
  EXPECT_EQ(ErrnoOf(broker.mounts().Mount("mnt:/rom", "dev:/rom", "", root)), EEXIST);
  EXPECT_EQ(ErrnoOf(broker.mounts().Mount("mnt:/no", "dev:/rom", "cramfs", root)), EINVAL);
  EXPECT_EQ(ErrnoOf(broker.OpenFile(session, "mnt:/rom/big", O_RDWR, 0).status()), EROFS);
  EXPECT_EQ(ErrnoOf(broker.OpenFile(session, "mnt:/rom/none", O_RDONLY, 0).status()), ENOENT);

  const int fd = *broker.OpenFile(session, "mnt:/rom/big", O_RDONLY, 0);
  const auto map = [&](int flags, std::uint32_t prot, std::uint64_t count) {
    return broker.Mmap(session, {.length = count, .prot = prot, .flags = static_cast<std::uint32_t>(flags)}, fd);
  };
  const auto text = map(MAP_PRIVATE, PROT_READ | PROT_EXEC, 2 * kPage);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->kind, nommu::MappingKind::kDirect);
  EXPECT_EQ(memory[text->address + kPage], std::byte{0x42});
  EXPECT_EQ(map(MAP_PRIVATE, PROT_READ | PROT_WRITE, kPage)->kind, nommu::MappingKind::kPrivateCopy);
  EXPECT_EQ(ErrnoOf(map(MAP_PRIVATE, PROT_READ, 4096 * kPage).status()), EINVAL);
  // Unmounted and removed, the image lasts while it is mapped.
  ASSERT_TRUE(broker.mounts().Unmount("mnt:/rom", root).ok());
  ASSERT_TRUE(broker.devices().Remove("dev:/rom", root).ok());
  EXPECT_EQ(memory[text->address], std::byte{0x41});
}

}  // namespace
}  // namespace mapbroker::backing
