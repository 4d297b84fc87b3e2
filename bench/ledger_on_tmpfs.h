// A ledger in memory, as the runtime directory has it, for as long as the object lives.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "daemon/records.h"
#include "shm_backend/ledger.h"

namespace mapbroker::bench {

class LedgerOnTmpfs {
 public:
  LedgerOnTmpfs() {
    if (mkdtemp(dir_.data()) == nullptr) Die("mkdtemp");
    auto ledger = shm::Ledger::Open(dir_ + "/ledger.mdb", kTables);
    if (!ledger.ok()) Die(std::string(ledger.status().message()).c_str());
    ledger_ = *std::move(ledger);
  }
  ~LedgerOnTmpfs() {
    ledger_.reset();
    std::filesystem::remove_all(dir_);
  }

  shm::Ledger* get() const { return ledger_.get(); }

 private:
  [[noreturn]] static void Die(const char* why) {
    std::fprintf(stderr, "bench: %s\n", why);
    std::exit(EXIT_FAILURE);
  }

  std::string dir_ = "/dev/shm/mapbroker-bench-XXXXXX";
  std::unique_ptr<shm::Ledger> ledger_;
};

}  // namespace mapbroker::bench
