#include "client/mapctl/replay/scripted_driver.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/mapctl/replay/scenario.h"

namespace mapbroker::mapctl {
namespace {

using nlohmann::json;

constexpr std::uint64_t kPage = 4096;
constexpr int kMaxErrno = 133;  // EHWPOISON, the last with a name

// OK, or the errno of that name.
absl::Status AnswerOf(const std::string& name) {
  if (name == "ok") return absl::OkStatus();
  for (int error = 1; error <= kMaxErrno; ++error) {
    const char* const known = strerrorname_np(error);
    if (known != nullptr && name == known) return DriverError(error);
  }
  throw std::out_of_range(absl::StrCat("no errno is named ", name));
}

std::optional<unsigned> CapabilitiesOf(const json& order) {
  static const std::map<std::string, unsigned> kNames{
      {"COPY", kMapCopy}, {"DIRECT", kMapDirect}, {"READ", kReadMap}, {"WRITE", kWriteMap}, {"EXEC", kExecMap}};
  if (!order.contains("capabilities")) return std::nullopt;
  unsigned capabilities = 0;
  for (const auto& name : order["capabilities"]) capabilities |= kNames.at(name.get<std::string>());
  return capabilities;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ScriptedDriver>> ScriptedDriver::Register(Client& client, const json& order) {
  const DriverOptions options{.name = order.at("path"),
                              .block = order.value("block", false),
                              .mode = 0666,
                              .capabilities = CapabilitiesOf(order),
                              .memory = NumberOf(order, "memory"),
                              .size = NumberOf(order, "memory"),
                              .properties = {}};
  const json has = order.value("operations", json::object());
  auto counts = std::make_shared<Counts>();
  DriverOperations operations;
  if (has.contains("get_unmapped_area")) {
    operations.get_unmapped_area = [counts, answer = AnswerOf(has["get_unmapped_area"]), memory = options.memory](
                                       const DriverRequest& request) -> absl::StatusOr<std::uint64_t> {
      ++counts->get_unmapped_area;
      if (!answer.ok()) return answer;
      if (request.offset >= memory || request.length > memory - request.offset) {
        return DriverError(EINVAL, "the device has no so many bytes there");
      }
      return request.offset;
    };
  }
  if (has.contains("mmap")) {
    operations.mmap = [counts, answer = AnswerOf(has["mmap"])](const DriverRequest&, const DriverArea&) {
      ++counts->mmap;
      return answer;
    };
  }
  if (has.contains("read")) {
    operations.read = [counts, answer = AnswerOf(has["read"]), memory = options.memory](
                          std::uint64_t offset, std::span<std::byte> into) -> absl::StatusOr<std::size_t> {
      ++counts->read;
      if (!answer.ok()) return answer;
      const std::size_t count = std::min<std::uint64_t>(into.size(), offset < memory ? memory - offset : 0);
      for (std::size_t i = 0; i < count; ++i) into[i] = static_cast<std::byte>('a' + (offset + i) / kPage % 26);
      return count;
    };
  }
  operations.close = [counts](const DriverArea&) { ++counts->close; };
  absl::StatusOr<Driver> driver = Driver::Register(client, options, std::move(operations));
  if (!driver.ok()) return driver.status();
  const auto memory = driver->memory();
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>('A' + i / kPage % 26);
  return std::unique_ptr<ScriptedDriver>(new ScriptedDriver(std::move(counts), *std::move(driver)));
}

json ScriptedDriver::Calls() const {
  return {{"ok", true},
          {"get_unmapped_area", counts_->get_unmapped_area.load()},
          {"mmap", counts_->mmap.load()},
          {"read", counts_->read.load()},
          {"close", counts_->close.load()}};
}

}  // namespace mapbroker::mapctl
