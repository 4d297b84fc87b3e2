// The ledger's tables; record.proto says what each holds.
#pragma once

namespace mapbroker {

enum Table : unsigned {
  kHeader,
  kSessions,
  kSessionFiles,
  kRegions,
  kMappings,
  kRamNodes,
  kPieces,
  kSegments,
  kResults,
  kTables  // how many there are
};

}  // namespace mapbroker
