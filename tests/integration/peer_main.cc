// The program behind Peer: maps and unmaps as standard input says, one command a line, one line of answer each.
//
//   peer RUNTIME_DIR region|whole-pool read-write|read-only TOKEN
#include <fcntl.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/escaping.h"
#include "mapbroker/client.h"
#include "mapbroker/error.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::testing {
namespace {

struct Session {
  ConnectOptions options;
  std::optional<Client> client;
  std::map<int, Mapping> mappings;
  int next = 0;
};

std::string_view Text(const Mapping& mapping) {
  return {reinterpret_cast<const char*>(mapping.bytes().data()), mapping.bytes().size()};
}

void Map(Session& session, std::istream& arguments) {
  MapOptions options;
  std::string path;
  arguments >> options.length >> options.prot >> options.flags >> options.offset >> options.address;
  std::getline(arguments >> std::ws, path);
  const shm::UniqueFd file(path.empty() ? -1 : open(path.c_str(), O_RDONLY | O_CLOEXEC));
  options.fd = file.get();
  absl::StatusOr<Mapping> mapping = session.client->Map(options);
  if (!mapping.ok()) {
    const std::string rule = RuleOf(mapping.status());
    std::cout << "refused " << ErrnoOf(mapping.status()) << ' ' << (rule.empty() ? "-" : rule) << ' '
              << mapping.status().message() << std::endl;
    return;
  }
  std::cout << "mapped " << session.next << ' ' << mapping->address() << ' ' << mapping->length() << ' '
            << static_cast<int>(mapping->kind()) << ' ' << mapping->existing() << ' '
            << reinterpret_cast<std::uintptr_t>(mapping->bytes().data()) << std::endl;
  session.mappings.emplace(session.next++, *std::move(mapping));
}

// Closes this process's connection to handoff.sock, which the library keeps to itself.
void CloseHandoffConnection() {
  for (int fd = 3; fd < 1024; ++fd) {
    int type = 0;
    socklen_t size = sizeof(type);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET) shutdown(fd, SHUT_RDWR);
  }
}

void TakeUp(Session& session) {
  session.options.token = session.client->Token();
  auto client = Client::Connect(session.options);
  if (!client.ok()) {
    std::cout << client.status() << std::endl;
    return;
  }
  // What said farewell would end the session for both.
  new Client(std::exchange(*session.client, *std::move(client)));
  std::cout << "done" << std::endl;
}

// The errno.
int SizeRamFile(Client& client, const std::string& name, std::uint64_t size) {
  auto file = client.Open(name, O_RDWR | O_CREAT, 0666);
  return ErrnoOf(file.ok() ? file->Ftruncate(size) : file.status());
}

std::string ReadRamFile(Client& client, const std::string& name) {
  std::string bytes;
  auto file = client.Open(name, O_RDONLY);
  for (std::string part(1 << 20, ' '); file.ok();) {
    const auto count = file->Pread(std::as_writable_bytes(std::span(part)), bytes.size());
    if (!count.ok() || *count == 0) break;
    bytes.append(part, 0, *count);
  }
  return bytes;
}

// Another user's process from now on, as if he had started it.
void Become(uid_t user) {
  if (user == 0) return;
  if (setgroups(0, nullptr) != 0 || setresgid(user, user, user) != 0 || setresuid(user, user, user) != 0 ||
      prctl(PR_SET_DUMPABLE, 1) != 0) {
    std::cout << "cannot become user " << user << std::endl;
    std::exit(1);
  }
}

// Until it is killed.
void Churn(Client& client, const std::string& path) {
  std::cout << "churning" << std::endl;
  const std::string name = "ram:/churn-" + std::to_string(getpid());
  for (;;) {
    const shm::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    auto shared = client.Map({.length = 8192, .fd = fd.get()});
    auto own = client.Map({.length = 12288, .prot = PROT_READ | PROT_WRITE, .fd = fd.get()});
    auto zeroed = client.Map({.length = 100, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
    if (zeroed.ok()) zeroed->bytes()[0] = std::byte{1};
    auto file = client.Open(name, O_RDWR | O_CREAT | O_TRUNC);
    if (!file.ok()) continue;
    client.Unlink(name).IgnoreError();
    file->Ftruncate(16384).IgnoreError();
    auto direct = client.Map({.length = 16384, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED, .file = &*file});
    if (auto id = client.Shmget(0, 4096, 0600); id.ok()) {
      auto attached = client.Shmat(*id);
      client.ShmRemove(*id).IgnoreError();
      if (attached.ok()) attached->Unmap().IgnoreError();
    }
  }
}

void Obey(Session& session, const std::string& line) {
  std::istringstream arguments(line);
  std::string verb;
  int number = -1;
  arguments >> verb;
  if (verb == "map") return Map(session, arguments);
  if (verb == "token") {
    std::cout << session.client->Token() << std::endl;
    return;
  }
  if (verb == "take-up") return TakeUp(session);
  if (verb == "ram-size") {
    std::uint64_t size = 0;
    std::string name;
    arguments >> size >> name;
    std::cout << SizeRamFile(*session.client, name, size) << std::endl;
    return;
  }
  if (verb == "ram-read") {
    std::string name;
    arguments >> name;
    std::cout << absl::BytesToHexString(ReadRamFile(*session.client, name)) << std::endl;
    return;
  }
  if (verb == "churn") {
    std::string path;
    std::getline(arguments >> std::ws, path);
    Churn(*session.client, path);
  }
  if (verb == "disconnect") {
    session.mappings.clear();
    session.client.reset();
    std::cout << "done" << std::endl;
    return;
  }
  if (verb == "close-handoff") {
    CloseHandoffConnection();
    std::cout << "done" << std::endl;
    return;
  }
  arguments >> number;
  Mapping& mapping = session.mappings.at(number);
  if (verb == "read") {
    std::cout << absl::BytesToHexString(absl::string_view(Text(mapping).data(), Text(mapping).size())) << std::endl;
  } else if (verb == "hash") {
    std::cout << std::hash<std::string_view>()(Text(mapping)) << std::endl;
  } else if (verb == "scribble") {
    for (std::byte& byte : mapping.bytes()) byte = static_cast<std::byte>(std::to_integer<int>(byte) + 1);
    std::cout << "done" << std::endl;
  } else if (verb == "remap") {
    std::uint64_t length = 0;
    arguments >> length;
    std::cout << ErrnoOf(mapping.Resize(length)) << std::endl;
  } else if (verb == "unmap") {
    std::cout << ErrnoOf(mapping.Unmap()) << std::endl;
  }
}

}  // namespace
}  // namespace mapbroker::testing

int main(int, char** argv) {
  if (const char* user = getenv("MAPBROKER_TEST_USER"); user != nullptr) {
    mapbroker::testing::Become(static_cast<uid_t>(std::stoul(user)));
  }
  mapbroker::ConnectOptions options;
  options.runtime_dir = argv[1];
  options.attach = argv[2] == std::string("whole-pool") ? mapbroker::Attach::kWholePool : mapbroker::Attach::kRegion;
  options.read_only = argv[3] == std::string("read-only");
  options.token = argv[4];
  auto client = mapbroker::Client::Connect(options);
  if (!client.ok()) {
    std::cout << client.status() << std::endl;
    return 1;
  }
  std::cout << "connected" << std::endl;
  // Never destroyed: a process that ends unmaps nothing by itself.
  static auto* const session = new mapbroker::testing::Session;
  session->options = options;
  session->client = *std::move(client);
  for (std::string line; std::getline(std::cin, line);) mapbroker::testing::Obey(*session, line);
  return 0;
}
