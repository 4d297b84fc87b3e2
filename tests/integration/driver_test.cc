// D12: drivers in processes of their own, well-behaved and otherwise.
#include "mapbroker/driver.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include "mapbroker/error.h"
#include "mapbroker/mapbroker.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kPage = 4096, kMemory = 4 * kPage;
const char kName[] = "dev:/chip";

class Drivers : public ::testing::Test {
 protected:
  explicit Drivers(const std::vector<std::string>& options = {}) : daemon_(options) {}

  Child Drive(const std::string& how = "serve", std::uint64_t memory = kMemory) {
    return Child({DRIVER, daemon_.runtime_dir(), kName, std::to_string(memory), how});
  }
  absl::StatusOr<Mapping> MapShared(Client& client, const File& device, std::uint64_t offset = 0,
                                    std::uint64_t length = kPage) {
    return client.Map(
        {.length = length, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED, .file = &device, .offset = offset});
  }
  // Once the daemon has seen that the driver is no more.
  void WaitUntilGone() {
    WaitUntil("the driver is gone", [this] { return ErrnoOf(client_.Open(kName, O_RDWR).status()) == ENXIO; });
  }
  // All memory is free again.
  void ExpectNothingLeft() {
    WaitUntil("nothing is left in the pool", [this] { return client_.Statistics()->used == 0; });
  }

  Daemon daemon_;
  Client client_ = Connect(daemon_);
};

class ModernDrivers : public Drivers {
 protected:
  ModernDrivers() : Drivers({"--profile", "modern"}) {}
};

class ImpatientDrivers : public Drivers {
 protected:
  ImpatientDrivers() : Drivers({"--config", Config()}) {}

 private:
  static std::string Config() {
    static const TempDir dir;
    return dir.WriteFile("mapbrokerd.toml", "[limits]\ndriver_deadline_ms = 50\n");
  }
};

TEST_F(Drivers, AKilledDriverLeavesItsMappingsAndASuccessorTakesThemOver) {
  Child driver = Drive();
  ASSERT_EQ(driver.ReadLine(), "driving");
  absl::StatusOr<File> device = client_.Open(kName, O_RDWR);
  ASSERT_TRUE(device.ok()) << device.status();
  auto stands = MapShared(client_, *device, kPage, 2 * kPage);
  ASSERT_TRUE(stands.ok()) << stands.status();
  stands->bytes()[0] = std::byte{7};

  driver.Signal(SIGKILL);
  driver.Wait();
  WaitUntilGone();
  const absl::Status refused = MapShared(client_, *device).status();
  EXPECT_EQ(ErrnoOf(refused), EIO);
  EXPECT_EQ(RuleOf(refused), "D12");
  EXPECT_THAT(std::string(refused.message()), HasSubstr("start it again"));
  EXPECT_THAT(Mapctl(daemon_.runtime_dir(), {"device", "info", "chip"}).output, HasSubstr("gone"));
  // Sharing what stands asks no driver (S12).
  Client other = Connect(daemon_);
  EXPECT_EQ(stands->bytes()[0], std::byte{7});

  Child successor = Drive();
  EXPECT_EQ(successor.ReadLine(), "driving 4096 8192");
  const auto again = other.Open(kName, O_RDWR);
  ASSERT_TRUE(again.ok()) << again.status();
  auto sees = MapShared(other, *again, kPage, kPage);
  ASSERT_TRUE(sees.ok()) << sees.status();
  EXPECT_EQ(sees->bytes()[0], std::byte{7});
  EXPECT_TRUE(MapShared(client_, *device).ok());
  EXPECT_THAT(Mapctl(daemon_.runtime_dir(), {"device", "info", "chip"}).output,
              HasSubstr("process " + std::to_string(successor.pid())));

  successor.WriteLine("unregister");
  EXPECT_EQ(successor.ReadLine(), "done");
  EXPECT_EQ(ErrnoOf(client_.Open(kName, O_RDWR).status()), ENOENT);
  EXPECT_EQ(sees->bytes()[0], std::byte{7});
}

TEST_F(Drivers, ADriverThatDiesInACallFailsThatCall) {
  Child driver = Drive("die-in-mmap");
  ASSERT_EQ(driver.ReadLine(), "driving");
  const auto device = client_.Open(kName, O_RDWR);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(ErrnoOf(MapShared(client_, *device).status()), EIO);
  daemon_.ExpectServes();
  Child successor = Drive();
  EXPECT_EQ(successor.ReadLine(), "driving") << "a mapping that failed was reported";
  EXPECT_TRUE(MapShared(client_, *device).ok());
}

TEST_F(ImpatientDrivers, ADriverThatHangsFailsOnlyCallsOnItsDevice) {
  Child driver = Drive();
  ASSERT_EQ(driver.ReadLine(), "driving");
  const auto device = client_.Open(kName, O_RDWR);
  ASSERT_TRUE(device.ok()) << device.status();
  driver.Signal(SIGSTOP);
  siginfo_t stopped;  // all its threads
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(driver.pid()), &stopped, WSTOPPED | WNOWAIT), 0);
  const absl::Status status = MapShared(client_, *device).status();
  EXPECT_EQ(ErrnoOf(status), ETIMEDOUT);
  EXPECT_EQ(RuleOf(status), "D12");
  EXPECT_THAT(std::string(status.message()), HasSubstr("get_unmapped_area within 50 ms"));
  std::byte byte[1];
  EXPECT_EQ(ErrnoOf(device->Pread(byte, 0).status()), ETIMEDOUT);
  daemon_.ExpectServes();
  driver.Signal(SIGCONT);
  // What it answers to the calls of before is too late and forgotten.
  WaitUntil("the driver answers again", [&] { return MapShared(client_, *device).ok(); });
}

TEST_F(Drivers, OneDriverADevice) {
  Child driver = Drive();
  ASSERT_EQ(driver.ReadLine(), "driving");
  EXPECT_THAT(Drive().ReadLine(), HasSubstr("refused " + std::to_string(EBUSY)));
  driver.Signal(SIGKILL);
  WaitUntilGone();
  EXPECT_THAT(Drive("serve", 2 * kMemory).ReadLine(), HasSubstr("refused " + std::to_string(EINVAL)));
  ASSERT_EQ(Mapctl(daemon_.runtime_dir(), {"device", "rm", "chip"}).status, 0);
  ASSERT_EQ(Mapctl(daemon_.runtime_dir(), {"device", "create", "chip", "ramdisk", "size=64K"}).status, 0);
  EXPECT_THAT(Drive().ReadLine(), HasSubstr("refused " + std::to_string(EEXIST)));
}

TEST_F(Drivers, WhatADriverAsksForMustBePossible) {
  const auto refusal = [&](const DriverOptions& options, Client& client) {
    const absl::Status status = Driver::Register(client, options, {}).status();
    EXPECT_FALSE(status.message().empty());
    return ErrnoOf(status);
  };
  EXPECT_EQ(refusal({.name = "chip"}, client_), EINVAL);
  EXPECT_EQ(refusal({.name = kName, .capabilities = 1U << 10}, client_), EINVAL);
  EXPECT_EQ(refusal({.name = kName, .memory = std::uint64_t{1} << 40}, client_), ENOMEM);
  EXPECT_EQ(refusal({.name = kName, .memory = UINT64_MAX}, client_), ENOMEM);
  Client reader = Connect(daemon_, {.runtime_dir = "", .read_only = true});
  EXPECT_EQ(refusal({.name = kName, .memory = kMemory}, reader), EACCES);
  EXPECT_TRUE(Driver::Register(reader, {.name = kName}, {}).ok()) << "no memory, so nothing to write to";
  ExpectNothingLeft();
}

// The same calls for the profiles, whose P7 differ: how many closes its driver has been told of.
int ClosesOf(Child& driver) {
  driver.WriteLine("close");
  return std::stoi(driver.ReadLine());
}

TEST_F(Drivers, AClassicDriverIsToldOfTheLastUnmapping) {
  Child driver = Drive();
  ASSERT_EQ(driver.ReadLine(), "driving");
  const auto device = client_.Open(kName, O_RDWR);
  auto first = MapShared(client_, *device), second = MapShared(client_, *device);
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE(first->Unmap().ok());
  // Calls arrive in order, so that what follows this one has been told too.
  const auto other = MapShared(client_, *device, kPage);
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(ClosesOf(driver), 0);
  ASSERT_TRUE(second->Unmap().ok());
  WaitUntil("the driver is told", [&] { return ClosesOf(driver) == 1; });
}

TEST_F(ModernDrivers, AModernDriverIsToldOfEveryUnmapping) {
  Child driver = Drive();
  ASSERT_EQ(driver.ReadLine(), "driving");
  const auto device = client_.Open(kName, O_RDWR);
  auto first = MapShared(client_, *device), second = MapShared(client_, *device);
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE(first->Unmap().ok());
  WaitUntil("the driver is told", [&] { return ClosesOf(driver) == 1; });
  ASSERT_TRUE(second->Unmap().ok());
  WaitUntil("the driver is told", [&] { return ClosesOf(driver) == 2; });
}

TEST_F(Drivers, AClientsDeathClosesItsMappings) {
  Child driver = Drive();
  ASSERT_EQ(driver.ReadLine(), "driving");
  Child holder({MAPCTL, "--runtime-dir", daemon_.runtime_dir(), "map", kName, "--shared", "--prot", "rw", "--hold"});
  EXPECT_THAT(holder.ReadLine(), HasSubstr("16384 bytes"));
  holder.Signal(SIGKILL);
  WaitUntil("the driver is told", [&] { return ClosesOf(driver) == 1; });
  driver.Signal(SIGKILL);
  WaitUntilGone();
  ASSERT_TRUE(client_.RemoveDevice(kName).ok());
  ExpectNothingLeft();
}

TEST_F(Drivers, TheDaemonsEndIsToldToADriver) {
  absl::StatusOr<Driver> driver = Driver::Register(client_, {.name = kName, .memory = kMemory}, {});
  ASSERT_TRUE(driver.ok()) << driver.status();
  daemon_.Stop();
  EXPECT_EQ(ErrnoOf(driver->Wait()), ECONNRESET);
}

TEST_F(Drivers, ADriverInC) {
  const std::unique_ptr<mb_session, void (*)(mb_session*)> session(mb_connect(daemon_.runtime_dir().c_str()),
                                                                   mb_disconnect);
  ASSERT_NE(session, nullptr) << mb_strerror();
  struct State {
    std::atomic<int> mapped = 0;
  } state;
  const mb_driver_operations operations{
      .get_unmapped_area = [](void*, uint64_t offset, uint64_t length, int, int) -> int64_t {
        return offset + length <= kMemory ? static_cast<int64_t>(offset) : -ENOSPC;
      },
      .mmap =
          [](void* context, uint64_t, uint64_t, int, int, uint64_t) {
            ++static_cast<State*>(context)->mapped;
            return 0;
          },
      .read = [](void*, uint64_t, void* buffer, size_t count) -> ssize_t {
        std::memset(buffer, 'c', count);
        return static_cast<ssize_t>(count);
      },
      .close = nullptr};
  const mb_driver_options options{
      .name = kName, .block = 0, .mode = 0600, .capabilities = 0, .memory = kMemory, .size = 0};
  mb_driver* const driver = mb_driver_register(session.get(), &options, &operations, &state);
  ASSERT_NE(driver, nullptr) << mb_strerror();
  std::strcpy(static_cast<char*>(mb_driver_memory(driver)), "from C");
  const auto device = client_.Open(kName, O_RDWR);
  ASSERT_TRUE(device.ok()) << device.status();
  const auto mapping = MapShared(client_, *device);
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_STREQ(reinterpret_cast<const char*>(mapping->bytes().data()), "from C");
  EXPECT_EQ(state.mapped, 1);
  EXPECT_EQ(ErrnoOf(MapShared(client_, *device, kMemory).status()), ENOSPC);
  std::byte bytes[2];
  EXPECT_EQ(*device->Pread(bytes, 0), 2u);
  EXPECT_EQ(bytes[1], std::byte{'c'});
  EXPECT_EQ(mb_driver_register(session.get(), &options, &operations, &state), nullptr);
  EXPECT_EQ(errno, EBUSY);
  mb_driver_unregister(driver);
  EXPECT_EQ(ErrnoOf(client_.Open(kName, O_RDWR).status()), ENOENT);
}

}  // namespace
}  // namespace mapbroker::testing
