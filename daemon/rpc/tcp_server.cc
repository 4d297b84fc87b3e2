#include "daemon/rpc/tcp_server.h"

#include <arpa/inet.h>
#include <grpc/support/log.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/rpc/calls.h"
#include "daemon/rpc/roles.h"
#include "daemon/rpc/status.h"
#include "shm_backend/unique_fd.h"
#include "spdlog/spdlog.h"

namespace mapbroker::rpc {
namespace {

using nommu::Refuse;

// Nothing that may be asked over TCP takes more.
constexpr int kMaxRequestBytes = 64 << 10;

// How long running calls may go on when the server stops.
constexpr std::chrono::seconds kGrace(2);

// Asked before every call of whatever service.
class RoleCheck final : public grpc::AuthMetadataProcessor {
 public:
  RoleCheck(Roles roles, Events& events) : roles_(std::move(roles)), events_(events) {}

  // It takes no time, so it needs no thread of its own.
  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata&, grpc::AuthContext* peer, OutputMetadata*, OutputMetadata*) override {
    const absl::Status status = MayInspect(roles_, *peer);
    if (status.ok()) return grpc::Status::OK;
    events_.Tell(EventKind::kRefused, [&] {
      return Event{.kind = EventKind::kRefused,
                   .peer = NameOf(*peer),
                   .call = "a call",
                   .error = nommu::ErrnoOf(status),
                   .sentence = std::string(status.message())};
    });
    return ToGrpc(status);
  }

 private:
  const Roles roles_;
  Events& events_;
};

// gRPC says nothing to us of a handshake that failed but in its log.
void LogOfGrpc(gpr_log_func_args* args) {
  if (args->severity == GPR_LOG_SEVERITY_ERROR) spdlog::warn("gRPC: {}", args->message);
}

absl::StatusOr<std::string> ReadPem(const char* key, const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad()) {
    const int error = errno == 0 ? EIO : errno;
    return Refuse(error, "", absl::StrCat("tcp.", key, " ", path, ": ", std::strerror(error)));
  }
  return text;
}

// gRPC would only say that it could not be done.
absl::Status CheckPem(const Config::Tcp& config) {
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  const auto no = [&](const std::string& what) { return Refuse(EINVAL, "", what); };
  if (SSL_CTX_use_certificate_chain_file(context.get(), config.certificate.c_str()) != 1) {
    return no(absl::StrCat("tcp.certificate ", config.certificate, " holds no certificate in PEM"));
  }
  // The certificate is known by now, so that a key of another is refused too.
  if (SSL_CTX_use_PrivateKey_file(context.get(), config.key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return no(absl::StrCat("tcp.key ", config.key, " holds no private key in PEM that belongs to tcp.certificate ",
                           config.certificate));
  }
  if (SSL_CTX_load_verify_locations(context.get(), config.client_ca.c_str(), nullptr) != 1) {
    return no(absl::StrCat("tcp.client_ca ", config.client_ca, " holds no certificate in PEM"));
  }
  return absl::OkStatus();
}

// The same.
absl::Status CheckAddress(const Endpoint& endpoint) {
  sockaddr_in v4{};
  sockaddr_in6 v6{};
  v4.sin_family = AF_INET;
  v6.sin6_family = AF_INET6;
  v4.sin_port = v6.sin6_port = htons(static_cast<std::uint16_t>(endpoint.port));
  const bool is_v4 = inet_pton(AF_INET, endpoint.address.c_str(), &v4.sin_addr) == 1;
  if (!is_v4) inet_pton(AF_INET6, endpoint.address.c_str(), &v6.sin6_addr);
  const shm::UniqueFd probe(socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int yes = 1;
  setsockopt(probe.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  const auto* const address = is_v4 ? reinterpret_cast<const sockaddr*>(&v4) : reinterpret_cast<const sockaddr*>(&v6);
  if (bind(probe.get(), address, is_v4 ? sizeof(v4) : sizeof(v6)) == 0 && listen(probe.get(), 1) == 0) {
    return absl::OkStatus();
  }
  // Not by the errno, of which some mean to main that another daemon serves the pool.
  return absl::FailedPreconditionError(absl::StrCat("tcp.listen ", endpoint.ToString(), ": ", std::strerror(errno)));
}

}  // namespace

TcpServer::TcpServer() = default;

absl::StatusOr<std::unique_ptr<TcpServer>> TcpServer::Listen(const Config::Tcp& config,
                                                             const std::vector<grpc::Service*>& services, Calls& calls,
                                                             Events& events) {
  grpc::SslServerCredentialsOptions tls(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  const auto certificate = ReadPem("certificate", config.certificate);
  if (!certificate.ok()) return certificate.status();
  const auto key = ReadPem("key", config.key);
  if (!key.ok()) return key.status();
  const auto client_ca = ReadPem("client_ca", config.client_ca);
  if (!client_ca.ok()) return client_ca.status();
  if (absl::Status status = CheckPem(config); !status.ok()) return status;
  if (absl::Status status = CheckAddress(*config.listen); !status.ok()) return status;
  tls.pem_root_certs = *client_ca;
  tls.pem_key_cert_pairs.push_back({*key, *certificate});

  gpr_set_log_function(LogOfGrpc);
  const auto credentials = grpc::SslServerCredentials(tls);
  credentials->SetAuthMetadataProcessor(std::make_shared<RoleCheck>(config.roles, events));
  std::unique_ptr<TcpServer> server(new TcpServer);
  server->endpoint_ = *config.listen;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(config.listen->ToString(), credentials, &server->endpoint_.port);
  // Two daemons that share a port would take each other's callers.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(calls.NewInterceptorFactory());
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr) {
    return Refuse(EIO, "", absl::StrCat("tcp.listen ", config.listen->ToString(), ": gRPC cannot serve there"));
  }
  return server;
}

TcpServer::~TcpServer() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + kGrace);
}

}  // namespace mapbroker::rpc
