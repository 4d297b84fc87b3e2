// Devices and images: the rest of Client.
#include <cerrno>

#include "client/src/client_impl.h"
#include "client/src/file.h"
#include "client/src/status.h"

namespace mapbroker {
namespace {

DeviceInfo FromProto(const v1::DeviceInfo& info) {
  return DeviceInfo{.name = info.name(),
                    .kind = info.kind(),
                    .size = info.size(),
                    .uid = info.uid(),
                    .gid = info.gid(),
                    .mode = info.mode(),
                    .capabilities = info.capabilities(),
                    .properties = {info.properties().begin(), info.properties().end()}};
}

}  // namespace

absl::Status Client::CreateDevice(const DeviceOptions& options) {
  v1::CreateDeviceRequest request;
  request.set_name(options.name);
  request.set_kind(options.kind);
  request.mutable_options()->insert(options.options.begin(), options.options.end());
  request.set_mode(options.mode);
  request.set_has_contents(options.contents_fd >= 0 || options.contents_file != nullptr);
  if (!request.has_contents()) return impl_->session->stub().CreateDevice(request);
  MapOptions contents;
  contents.fd = options.contents_fd;
  contents.file = options.contents_file;
  return impl_->session->WithFile(contents, [&](int number) {
    request.set_contents(number);
    return impl_->session->stub().CreateDevice(request);
  });
}

absl::Status Client::RemoveDevice(const std::string& name) {
  v1::RemoveDeviceRequest request;
  request.set_name(name);
  return impl_->session->stub().RemoveDevice(request);
}

absl::StatusOr<DeviceInfo> Client::GetDevice(const std::string& name) {
  v1::DeviceInfoRequest request;
  request.set_name(name);
  const absl::StatusOr<v1::DeviceInfo> info = impl_->session->stub().DeviceInfo(request);
  if (!info.ok()) return info.status();
  return FromProto(*info);
}

absl::Status Client::ListDevices(const std::function<bool(const DeviceInfo&)>& device) {
  return impl_->session->stub().ListDevices([&](const v1::DeviceInfo& next) { return device(FromProto(next)); });
}

absl::Status Client::EraseFlash(const std::string& name, std::uint64_t offset, std::uint64_t length) {
  v1::EraseRequest request;
  request.set_name(name);
  request.set_offset(offset);
  request.set_length(length);
  return impl_->session->stub().Erase(request);
}

absl::Status Client::Mount(const std::string& name, const std::string& device, const std::string& type) {
  v1::MountRequest request;
  request.set_name(name);
  request.set_device(device);
  request.set_type(type);
  return impl_->session->stub().Mount(request);
}

absl::Status Client::Unmount(const std::string& name) {
  v1::UnmountRequest request;
  request.set_name(name);
  return impl_->session->stub().Unmount(request);
}

}  // namespace mapbroker
