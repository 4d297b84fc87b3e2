// Inspection and administration over TCP: who gets in, and what the others are told. Certificates are made by
// openssl(1).
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "daemon/exit_status.h"
#include "mapbroker/v1/memory.grpc.pb.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;

// A place to make certificates in.
class Authority {
 public:
  // Each is a certificate of its own name, NAME.pem with NAME.key.
  void MakeCa(const std::string& name) {
    OpenSsl({"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
             "/CN=" + name, "-keyout", Key(name), "-out", Certificate(name)});
  }
  void Make(const std::string& name, const std::string& ca, const std::string& alternative_names = "",
            const std::string& days = "2") {
    OpenSsl({"req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=" + name, "-keyout",
             Key(name), "-out", files_.Path(name + ".csr")});
    std::vector<std::string> sign{"x509",
                                  "-req",
                                  "-in",
                                  files_.Path(name + ".csr"),
                                  "-CA",
                                  Certificate(ca),
                                  "-CAkey",
                                  Key(ca),
                                  "-CAcreateserial",
                                  "-days",
                                  days,
                                  "-out",
                                  Certificate(name)};
    if (!alternative_names.empty()) {
      sign.insert(sign.end(),
                  {"-extfile", files_.WriteFile(name + ".ext", "subjectAltName=" + alternative_names + "\n")});
    }
    OpenSsl(sign);
  }

  std::string Certificate(const std::string& name) const { return files_.Path(name + ".pem"); }
  std::string Key(const std::string& name) const { return files_.Path(name + ".key"); }
  const TempDir& files() const { return files_; }

 private:
  void OpenSsl(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "/usr/bin/openssl");
    const Finished finished = Run(arguments);
    ASSERT_EQ(finished.status, 0) << finished.errors;
  }

  const TempDir files_;
};

class OverTls : public ::testing::Test {
 protected:
  void SetUp() override {
    authority_.MakeCa("ca");
    authority_.Make("daemon", "ca", "IP:127.0.0.1,DNS:localhost");
    authority_.Make("alice", "ca");
    authority_.Make("bob", "ca", "DNS:bob.example,URI:spiffe://example/bob");
    authority_.Make("mallory", "ca");
  }

  std::string Table(const std::string& more = "", const std::string& address = "127.0.0.1:0") const {
    return absl::StrCat("[tcp]\nlisten = \"", address, "\"\ncertificate = \"", authority_.Certificate("daemon"),
                        "\"\nkey = \"", authority_.Key("daemon"), "\"\nclient_ca = \"", authority_.Certificate("ca"),
                        "\"\n", more.empty() ? "inspectors = [\"bob.example\"]\nadministrators = [\"alice\"]\n" : more);
  }
  void Start() {
    daemon_.emplace(std::vector<std::string>{"--config", authority_.files().WriteFile("config.toml", Table())});
    const std::string log = daemon_->Log(), before = "over TLS on ";
    const std::size_t at = log.find(before);
    ASSERT_NE(at, std::string::npos) << log;
    server_ = log.substr(at + before.size(), log.find('\n', at) - at - before.size());
  }
  Finished As(const std::string& name, std::vector<std::string> arguments, const std::string& ca = "ca") {
    arguments.insert(arguments.begin(), {"--server", server_, "--tls-ca", authority_.Certificate(ca), "--tls-cert",
                                         authority_.Certificate(name), "--tls-key", authority_.Key(name)});
    return Mapctl("/nowhere", arguments);
  }
  // The daemon does not start and says why in one line.
  void ExpectRefusal(const std::string& config, int status, const std::string& words) {
    const TempDir home;
    const Finished refused = RunDaemon({"--config", authority_.files().WriteFile("config.toml", config),
                                        "--runtime-dir", home.Path("run"), "--pool-size", "4M"});
    EXPECT_EQ(refused.status, status) << refused.errors;
    EXPECT_EQ(std::count(refused.errors.begin(), refused.errors.end(), '\n'), 1) << refused.errors;
    EXPECT_THAT(refused.errors, HasSubstr(words));
    EXPECT_TRUE(home.Entries().empty());
  }

  Authority authority_;
  std::optional<Daemon> daemon_;
  std::string server_;
};

TEST_F(OverTls, AnInspectorSeesStatusMapsSessionsAndWho) {
  Start();
  const std::string file = daemon_->files().MakeFile("file", 20'480);
  Peer peer(daemon_->runtime_dir());
  const MapReply mapping = peer.Map(file, {.length = 20'480});
  const Finished status = As("bob", {"status", "--json"});
  ASSERT_EQ(status.status, 0) << status.errors;
  EXPECT_EQ(nlohmann::json::parse(status.output).at("mappings"), 1);
  const Finished maps = As("bob", {"maps", "--json"});
  ASSERT_EQ(maps.status, 0) << maps.errors;
  EXPECT_EQ(nlohmann::json::parse(maps.output).at(0).at("start"), mapping.address);
  const Finished sessions = As("bob", {"session", "ls", "--json"});
  ASSERT_EQ(sessions.status, 0) << sessions.errors;
  EXPECT_EQ(nlohmann::json::parse(sessions.output).at(0).at("pid"), peer.pid());
  EXPECT_THAT(As("bob", {"who", file}).output, HasSubstr("test_peer"));
  EXPECT_EQ(As("bob", {"top", "--once"}).status, 0);
}

TEST_F(OverTls, AnInspectorWatches) {
  Start();
  Child watcher({MAPCTL, "--server", server_, "--tls-ca", authority_.Certificate("ca"), "--tls-cert",
                 authority_.Certificate("bob"), "--tls-key", authority_.Key("bob"), "--json", "watch"});
  WaitUntil("it watches", [&] { return !watcher.Errors().empty(); });
  Peer peer(daemon_->runtime_dir());
  EXPECT_EQ(nlohmann::json::parse(watcher.ReadLine()).at("pid"), peer.pid());
}

TEST_F(OverTls, AnInspectorDoesNotAdministerAndAnAdministratorDoes) {
  Start();
  Peer peer(daemon_->runtime_dir());
  const Finished refused = As("bob", {"session", "end", "1", "--kill"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.errors, HasSubstr("EPERM"));
  EXPECT_THAT(refused.errors, HasSubstr("bob.example"));
  EXPECT_EQ(As("bob", {"log-level", "off"}).status, 1);
  EXPECT_EQ(As("alice", {"status"}).status, 0);
  const Finished ended = As("alice", {"session", "end", "1", "--kill"});
  EXPECT_EQ(ended.status, 0) << ended.errors;
  WaitUntil("the session is gone", [&] { return As("alice", {"session", "ls", "--json"}).output == "[]\n"; });
  EXPECT_THAT(daemon_->Log(), HasSubstr("alice over TCP: administered: ended session 1"));
}

TEST_F(OverTls, ANameWithoutARoleIsToldSo) {
  Start();
  const Finished refused = As("mallory", {"status"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.errors, HasSubstr("EACCES: the certificate is of mallory, who is named neither in"));
  // A name is the whole name.
  authority_.Make("alice2", "ca");
  EXPECT_EQ(As("alice2", {"status"}).status, 1);
  // Where there are alternative names, the common name is nobody's.
  authority_.Make("alice", "ca", "DNS:eve");
  EXPECT_EQ(As("alice", {"status"}).status, 1);
}

TEST_F(OverTls, ACertificateOfAnotherAuthorityIsRefused) {
  Start();
  authority_.MakeCa("other");
  authority_.Make("stranger", "other");
  const Finished refused = As("stranger", {"status"});
  EXPECT_EQ(refused.status, 3);
  EXPECT_THAT(refused.errors, HasSubstr("tcp.client_ca"));
  // One that calls itself alice is no better.
  authority_.Make("alice", "other");
  EXPECT_EQ(As("alice", {"session", "end", "1"}).status, 3);
  WaitUntil("the daemon's log says why",
            [&] { return daemon_->Log().find("certificate verify failed") != std::string::npos; });
}

TEST_F(OverTls, AnExpiredCertificateIsRefused) {
  Start();
  authority_.Make("alice", "ca", "", "-1");
  const Finished refused = As("alice", {"status"});
  EXPECT_EQ(refused.status, 3);
  EXPECT_EQ(std::count(refused.errors.begin(), refused.errors.end(), '\n'), 1) << refused.errors;
}

TEST_F(OverTls, ACallerWithoutACertificateOrWithoutTlsIsRefused) {
  Start();
  std::ifstream file(authority_.Certificate("ca"));
  grpc::SslCredentialsOptions options;
  options.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
  for (const auto& credentials : {grpc::SslCredentials(options), grpc::InsecureChannelCredentials()}) {
    const auto stub = v1::Memory::NewStub(grpc::CreateChannel(server_, credentials));
    grpc::ClientContext context;
    v1::MmapResponse response;
    EXPECT_EQ(stub->Mmap(&context, {}, &response).error_code(), grpc::StatusCode::UNAVAILABLE);
  }
}

TEST_F(OverTls, MappingCallsAreNotThereForAdministratorsEither) {
  Start();
  const auto read = [](const std::string& path) {
    std::ifstream file(path);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = read(authority_.Certificate("ca"));
  options.pem_cert_chain = read(authority_.Certificate("alice"));
  options.pem_private_key = read(authority_.Key("alice"));
  const auto stub = v1::Memory::NewStub(grpc::CreateChannel(server_, grpc::SslCredentials(options)));
  grpc::ClientContext context;
  v1::MmapResponse response;
  EXPECT_EQ(stub->Mmap(&context, {}, &response).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  const Finished mapped = As("alice", {"map", "--anonymous", "--length", "4096"});
  EXPECT_EQ(mapped.status, 1);
  EXPECT_THAT(mapped.errors, HasSubstr("daemon's own machine"));
}

TEST_F(OverTls, ADaemonOfAnotherAuthorityOrNameIsNotBelieved) {
  Start();
  authority_.MakeCa("other");
  const Finished refused = As("alice", {"status"}, "other");
  EXPECT_EQ(refused.status, 3);
  authority_.Make("daemon", "ca", "DNS:elsewhere.example");
  Start();
  EXPECT_EQ(As("alice", {"status"}).status, 3);
}

TEST_F(OverTls, PeersThatSayNothingDelayNobody) {
  Start();
  std::vector<std::unique_ptr<Child>> silent;
  for (int i = 0; i < 20; ++i) {
    silent.push_back(std::make_unique<Child>(std::vector<std::string>{
        "/bin/bash", "-c",
        "exec 3<>/dev/tcp/127.0.0.1/" + server_.substr(server_.rfind(':') + 1) + "; echo; cat <&3"}));
    silent.back()->ReadLine();
  }
  EXPECT_EQ(As("bob", {"status"}).status, 0);
  daemon_->ExpectServes();
}

TEST_F(OverTls, TheListenerIsOffUnlessItIsAskedFor) {
  const Daemon daemon;
  EXPECT_THAT(daemon.Log(), ::testing::Not(HasSubstr("TLS")));
}

TEST_F(OverTls, AWrongConfigurationIsOneLineAtTheStart) {
  const auto with = [&](const std::string& key, const std::string& value) {
    std::string table = Table();
    const std::size_t at = table.find("\n" + key + " = ") + 1;
    return table.replace(at, table.find('\n', at) - at, value.empty() ? "" : absl::StrCat(key, " = ", value));
  };
  const auto quoted = [](const std::string& path) { return "\"" + path + "\""; };
  for (const char* key : {"certificate", "key", "client_ca"}) {
    ExpectRefusal(with(key, ""), kUsage, absl::StrCat("tcp.listen needs tcp.", key));
    ExpectRefusal(with(key, "\"/no/such/file\""), kFailed,
                  absl::StrCat("tcp.", key, " /no/such/file: No such file or directory"));
    const std::string nonsense = authority_.files().WriteFile("nonsense", "this is no certificate\n");
    ExpectRefusal(with(key, quoted(nonsense)), kUsage, absl::StrCat("tcp.", key, " ", nonsense, " holds no"));
  }
  ExpectRefusal(with("key", quoted(authority_.Key("alice"))), kUsage, "that belongs to tcp.certificate");
  ExpectRefusal(Table("inspectors = []\n"), kUsage, "tcp.inspectors or tcp.administrators");
  ExpectRefusal(Table("inspectors = \"bob\"\n"), kUsage, "array of names");
  ExpectRefusal(Table("", "localhost"), kUsage, "is no address and port");
  ExpectRefusal(Table("", "192.0.2.1:1"), kFailed, "tcp.listen 192.0.2.1:1: Cannot assign requested address");
  Start();
  ExpectRefusal(Table("", server_), kFailed, absl::StrCat("tcp.listen ", server_, ": Address already in use"));
}

TEST_F(OverTls, MapctlNeedsAllOfTheFiles) {
  Start();
  EXPECT_EQ(Mapctl("/nowhere", {"--server", server_, "status"}).status, 2);
  EXPECT_EQ(Mapctl("/nowhere", {"--tls-ca", authority_.Certificate("ca"), "status"}).status, 2);
  const Finished missing =
      Mapctl("/nowhere", {"--server", server_, "--tls-ca", authority_.Certificate("ca"), "--tls-cert", "/no/such/file",
                          "--tls-key", authority_.Key("bob"), "status"});
  EXPECT_EQ(missing.status, 1);
  EXPECT_THAT(missing.errors, HasSubstr("EINVAL: \"/no/such/file\" holds nothing that can be read"));
}

}  // namespace
}  // namespace mapbroker::testing
