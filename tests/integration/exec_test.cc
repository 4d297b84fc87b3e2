// X4: programs that run out of the pool.
#include "mapbroker/exec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mapbroker/error.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"

namespace mapbroker::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class Exec : public ::testing::Test {
 protected:
  explicit Exec(const std::string& pool = "64M") : daemon_({"--pool-size", pool}) {}

  std::vector<std::string> Command(const std::vector<std::string>& arguments) const {
    std::vector<std::string> command = {MAPCTL, "--runtime-dir", daemon_.runtime_dir(), "exec"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return command;
  }
  Finished Execute(const std::vector<std::string>& arguments, const Environment& environment = {}) const {
    return testing::Run(Command(arguments), environment);
  }
  void ExpectNothingLeft() {
    WaitUntil("nothing is left in the pool", [this] { return client_.Statistics()->used == 0; });
  }
  // Regions of the pool that hold the file's bytes without being writable, and how many there are of each range.
  std::map<std::uint64_t, int> SharedRegionsOf(const std::string& file) {
    std::map<std::uint64_t, int> regions;
    const absl::Status status = client_.ListMappings(0, [&](const MappingRow& row) {
      if (row.path == file && row.perms[1] == '-') ++regions[row.offset];
      return true;
    });
    EXPECT_TRUE(status.ok()) << status;
    return regions;
  }
  // Starts so many at once, looks, and ends them.
  void ExpectOneText(const std::string& file, int instances) {
    std::vector<std::unique_ptr<Child>> children;
    for (int i = 0; i < instances; ++i) children.push_back(std::make_unique<Child>(Command({file})));
    for (const auto& child : children) EXPECT_EQ(child->ReadLine(), "runs, data 7") << child->Errors();
    const std::map<std::uint64_t, int> regions = SharedRegionsOf(file);
    EXPECT_GE(regions.size(), 2u);
    for (const auto& [offset, count] : regions) EXPECT_EQ(count, 1) << "copies of the range at " << offset;
  }

  Daemon daemon_;
  Client client_ = Connect(daemon_);
};

class ExecInASmallPool : public Exec {
 protected:
  ExecInASmallPool() : Exec("256K") {}
};

TEST_F(Exec, ArgumentsEnvironmentAndExitStatus) {
  const Finished finished = Execute({PROGRAM, "arguments", "--json", "", "two words"}, {{"GREETING", "hello"}});
  EXPECT_EQ(finished.status, 42);
  EXPECT_EQ(finished.output, std::string("[") + PROGRAM + "][arguments][--json][][two words] hello " + PROGRAM + "\n");
  ExpectNothingLeft();
}

TEST_F(Exec, TheAuxiliaryVectorDescribesTheProgram) {
  EXPECT_THAT(Execute({PROGRAM, "auxv"}).output, ::testing::MatchesRegex("page 4096 loads [1-9] base 0 random 1\n"));
}

TEST_F(Exec, DataBssAndThreads) {
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Execute({PROGRAM, "memory"}).output, "data 7 bss zero then 8\n");
  ExpectNothingLeft();
}

TEST_F(Exec, TheStackIsAsLargeAsAskedFor) {
  EXPECT_EQ(Execute({PROGRAM, "stack", "60000"}).output, "deep 1\n");
  EXPECT_EQ(Execute({PROGRAM, "stack", "900000"}).status, 128 + SIGSEGV);
  EXPECT_EQ(Execute({"--stack", "1M", PROGRAM, "stack", "900000"}).output, "deep 1\n");
  EXPECT_EQ(Execute({PROGRAM_WITH_STACK, "stack", "900000"}).output, "deep 1\n") << "PT_GNU_STACK is not heeded";
}

TEST_F(Exec, StandardInputAndOutputPassThrough) {
  Child child(Command({PROGRAM}));
  EXPECT_EQ(child.ReadLine(), "runs, data 7");
  child.WriteLine("an echo");
  EXPECT_EQ(child.ReadLine(), "an echo");
  child.Signal(SIGTERM);
  EXPECT_EQ(child.Wait(), 128 + SIGTERM);
  EXPECT_EQ(Execute({PROGRAM, "abort"}).status, 128 + SIGABRT);
  ExpectNothingLeft();
}

TEST_F(Exec, AForkedChildHasNoneOfItsParentsMemory) {
  EXPECT_EQ(Execute({PROGRAM, "fork"}).output, "data 7, child died\n");
}

TEST_F(Exec, FiftyInstancesShareOneText) {
  ExpectOneText(PROGRAM, 50);
  ExpectNothingLeft();
}

TEST_F(Exec, AProgramThatNobodyHereWrote) {
  const char ldconfig[] = "/sbin/ldconfig";
  if (!PlanExec(ldconfig).ok()) GTEST_SKIP() << "ldconfig is not linked static-pie here";
  // Each waits for its output to be read, so that all are there at once.
  std::vector<std::unique_ptr<Child>> children;
  for (int i = 0; i < 50; ++i) {
    children.push_back(std::make_unique<Child>(Command({"--stack", "1M", ldconfig, "-p"})));
  }
  for (const auto& child : children) EXPECT_THAT(child->ReadLine(), HasSubstr("libs found in cache"));
  for (const auto& child : children) {
    EXPECT_THAT(child->ReadAll(), HasSubstr("libc.so.6"));
    EXPECT_EQ(child->Wait(), 0) << child->Errors();
  }
  EXPECT_EQ(testing::Run({ldconfig, "-p"}).output, Execute({ldconfig, "-p"}).output);
  ExpectNothingLeft();
}

TEST_F(Exec, KilledInstancesLeaveNothing) {
  std::vector<std::unique_ptr<Child>> children;
  for (int i = 0; i < 20; ++i) children.push_back(std::make_unique<Child>(Command({PROGRAM})));
  // Some before, some while and some after they are loaded.
  for (int i = 0; i < 20; ++i) {
    if (i % 2 == 0) children[static_cast<std::size_t>(i)]->ReadLine();
    children[static_cast<std::size_t>(i)]->Signal(SIGKILL);
  }
  for (const auto& child : children) child->Wait();
  ExpectNothingLeft();
}

TEST_F(Exec, WhatIsNoProgramIsRefusedWithAReason) {
  const auto refusal = [&](const std::string& file) {
    const Finished finished = Execute({file});
    EXPECT_EQ(finished.status, 1);
    return finished.errors;
  };
  const TempDir& files = daemon_.files();
  const auto executable = [&](const std::string& name, const std::string& contents) {
    const std::string path = files.WriteFile(name, contents);
    chmod(path.c_str(), 0755);
    return path;
  };
  const std::string program = ReadFile(PROGRAM);
  EXPECT_THAT(refusal(MAPCTL), AllOf(StartsWith("mapctl: ENOEXEC: "), HasSubstr("-static-pie")));
  EXPECT_THAT(refusal(executable("script", "#!/bin/sh\n" + std::string(100, '\n'))), HasSubstr("ENOEXEC"));
  EXPECT_THAT(refusal(executable("garbage", std::string(5000, 'x'))), HasSubstr("neither ELF nor bFLT"));
  EXPECT_THAT(refusal(executable("short", program.substr(0, 40))), HasSubstr("truncated"));
  EXPECT_THAT(refusal(executable("cut", program.substr(0, program.size() / 2))), HasSubstr("ENOEXEC"));
  std::string other = program;
  other[18] = 40;  // e_machine: ARM
  EXPECT_THAT(refusal(executable("arm", other)), HasSubstr("another machine"));
  EXPECT_THAT(refusal(files.WriteFile("plain", program)), HasSubstr("EACCES"));
  EXPECT_THAT(refusal(files.Path("")), HasSubstr("EACCES"));
  EXPECT_THAT(refusal(files.Path("none")), HasSubstr("ENOENT"));
  EXPECT_EQ(Execute({}).status, 2);
  EXPECT_EQ(Execute({"--no-such-option", PROGRAM}).status, 2);
  ExpectNothingLeft();
}

TEST_F(Exec, ArgumentsThatTheStackCannotHold) {
  const Finished finished = Execute({PROGRAM, "arguments", std::string(100'000, 'x')});
  EXPECT_THAT(finished.errors, HasSubstr("E2BIG"));
  EXPECT_EQ(Execute({"--stack", "1M", PROGRAM, "arguments", std::string(100'000, 'x')}).status, 42);
}

TEST_F(ExecInASmallPool, WithoutMemoryTheCallerGoesOn) {
  char program[] = PROGRAM;
  char* const arguments[] = {program, nullptr};
  const absl::Status status = mapbroker::Exec(PROGRAM, arguments, environ, {.runtime_dir = daemon_.runtime_dir()});
  EXPECT_EQ(ErrnoOf(status), ENOMEM);
  ExpectNothingLeft();
}

TEST_F(Exec, ADryRunSaysWhatItWouldTake) {
  const Finished text = Execute({"--dry-run", PROGRAM});
  EXPECT_EQ(text.status, 0);
  EXPECT_THAT(text.output, AllOf(HasSubstr("ELF for x86-64"), HasSubstr("100 instances"), HasSubstr("stack")));
  const auto json = nlohmann::json::parse(Execute({"--dry-run", "--json", PROGRAM}).output);
  const std::uint64_t shared = json["shared_bytes"], own = json["instance_bytes"];
  EXPECT_EQ(json["bytes_for_instances"]["10"], shared + 10 * own);
  EXPECT_EQ(json["pieces"].back()["length"], 128 * 1024);
  ExpectNothingLeft();

  // What it says is what the pool then has.
  Child one(Command({PROGRAM}));
  EXPECT_EQ(one.ReadLine(), "runs, data 7");
  EXPECT_EQ(client_.Statistics()->used, shared + own);
  Child two(Command({PROGRAM}));
  EXPECT_EQ(two.ReadLine(), "runs, data 7");
  EXPECT_EQ(client_.Statistics()->used, shared + 2 * own);
}

}  // namespace
}  // namespace mapbroker::testing
