#include "tests/integration/peer.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace mapbroker::testing {

Peer::Peer(const std::string& runtime_dir, const ConnectOptions& options, uid_t user)
    : process_({PEER, runtime_dir, options.attach == Attach::kWholePool ? "whole-pool" : "region",
                options.read_only ? "read-only" : "read-write", options.token},
               {{"MAPBROKER_TEST_USER", std::to_string(user)}}) {
  EXPECT_EQ(process_.ReadLine(), "connected") << process_.Errors();
}

std::string Peer::Ask(const std::string& command) {
  process_.WriteLine(command);
  return process_.ReadLine();
}

std::string Peer::Token() { return Ask("token"); }

int Peer::SizeRamFile(const std::string& name, std::uint64_t size) {
  return std::stoi(Ask(absl::StrCat("ram-size ", size, " ", name)));
}

Bytes Peer::ReadRamFile(const std::string& name) { return Bytes(absl::HexStringToBytes(Ask("ram-read " + name))); }

int Peer::Remap(const MapReply& mapping, std::uint64_t length) {
  return std::stoi(Ask(absl::StrCat("remap ", mapping.number, " ", length)));
}

void Peer::TakeUp() { EXPECT_EQ(Ask("take-up"), "done") << process_.Errors(); }

void Peer::StartChurn(const std::string& path) { EXPECT_EQ(Ask("churn " + path), "churning"); }

void Peer::StartMap(const std::string& path, const MapOptions& options) {
  process_.WriteLine(absl::StrCat("map ", options.length, " ", options.prot, " ", options.flags, " ", options.offset,
                                  " ", options.address, " ", path));
}

MapReply Peer::FinishMap() {
  const std::string line = process_.ReadLine();
  std::istringstream words(line);
  MapReply reply;
  std::string outcome;
  words >> outcome;
  if (outcome == "mapped") {
    int kind;
    words >> reply.number >> reply.address >> reply.length >> kind >> reply.existing >> reply.pointer;
    reply.kind = static_cast<MappingKind>(kind);
  } else if (outcome == "refused") {
    words >> reply.error >> reply.rule;
    std::getline(words >> std::ws, reply.sentence);
  }
  EXPECT_TRUE(words) << "answered \"" << line << "\": " << process_.Errors();
  return reply;
}

MapReply Peer::Map(const std::string& path, const MapOptions& options) {
  StartMap(path, options);
  return FinishMap();
}

Bytes Peer::Read(const MapReply& mapping) {
  return Bytes(absl::HexStringToBytes(Ask(absl::StrCat("read ", mapping.number))));
}

void Peer::Scribble(const MapReply& mapping) { EXPECT_EQ(Ask(absl::StrCat("scribble ", mapping.number)), "done"); }

std::uint64_t Peer::Hash(const MapReply& mapping) { return std::stoull(Ask(absl::StrCat("hash ", mapping.number))); }

int Peer::Unmap(const MapReply& mapping) { return std::stoi(Ask(absl::StrCat("unmap ", mapping.number))); }

void Peer::Disconnect() { EXPECT_EQ(Ask("disconnect"), "done"); }

void Peer::CloseHandoffConnection() { EXPECT_EQ(Ask("close-handoff"), "done"); }

void Peer::Kill() {
  process_.Signal(SIGKILL);
  EXPECT_EQ(process_.Wait(), 128 + SIGKILL);
}

int Peer::ReturnFromMain() { return process_.Wait(); }

}  // namespace mapbroker::testing
