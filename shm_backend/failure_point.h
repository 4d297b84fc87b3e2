// Places where a test can make the daemon fail, or die at that very instant; in the daemon that is installed they do
// nothing.
//
// failure_point.cc says "go on" everywhere. tests/system/failure_points.cc is its twin, which mapbrokerd_test is linked
// with instead, and which says what a file tells it.
#pragma once

#include <array>
#include <cstddef>

namespace mapbroker::shm {

enum class Point {
  // Memory.
  kSegmentCreate,
  kSegmentAdopt,
  kClientDescriptor,
  kAllocate,
  kAllocateSmall,
  kPrefault,
  // The ledger and its log.
  kLedgerOpen,
  kLedgerBegin,
  kLedgerPut,
  kLedgerCommit,
  kLedgerCommitted,
  kLedgerRead,
  kLogOpen,
  kLogAppend,
  kLogAppended,
  kLogTurned,
  // A call.
  kFileOpen,
  kFileRead,
  kFill,
  kFilled,
  kUnmapped,
  kRecorded,
  kAnswer,
  kRamRecorded,
  kRamCut,
  kSegmentRecorded,
  kSegmentMarked,
  // Sessions.
  kAccept,
  kReceive,
  kPidfd,
  kSessionRecord,
  kWatch,
  kWelcome,
  kSend,
  kMoveFiles,
  kEndSession,
  kLeaveSpace,
  kForget,
  // Start and stop.
  kRestoreFiles,
  kRestoreSessions,
  kRestoreMappings,
  kRestored,
  kDeclare,
  kFarewell,
  kGiveUp,
  kCount  // how many there are
};

struct PointInfo {
  Point point;
  const char* name;
  // An error can be told here; elsewhere a test can only end the process.
  bool can_fail;
};

inline constexpr std::array<PointInfo, static_cast<std::size_t>(Point::kCount)> kPoints{{
    {Point::kSegmentCreate, "segment.create", true},
    {Point::kSegmentAdopt, "segment.adopt", true},
    {Point::kClientDescriptor, "segment.client_descriptor", true},
    {Point::kAllocate, "page_pool.allocate", true},
    {Point::kAllocateSmall, "small_objects.allocate", true},
    {Point::kPrefault, "page_pool.prefault", true},
    {Point::kLedgerOpen, "ledger.open", true},
    {Point::kLedgerBegin, "ledger.begin", true},
    {Point::kLedgerPut, "ledger.put", true},
    {Point::kLedgerCommit, "ledger.commit", true},
    {Point::kLedgerCommitted, "ledger.committed", false},
    {Point::kLedgerRead, "ledger.read", true},
    {Point::kLogOpen, "log.open", true},
    {Point::kLogAppend, "log.append", true},
    {Point::kLogAppended, "log.appended", false},
    {Point::kLogTurned, "log.turned", false},
    {Point::kFileOpen, "host_file.open", true},
    {Point::kFileRead, "host_file.read", true},
    {Point::kFill, "broker.fill", true},
    {Point::kFilled, "broker.filled", false},
    {Point::kUnmapped, "broker.unmapped", false},
    {Point::kRecorded, "broker.recorded", false},
    {Point::kAnswer, "broker.answer", false},
    {Point::kRamRecorded, "ram_file.recorded", false},
    {Point::kRamCut, "ram_file.cut", false},
    {Point::kSegmentRecorded, "sysv_shm.recorded", false},
    {Point::kSegmentMarked, "sysv_shm.marked", false},
    {Point::kAccept, "handoff.accept", true},
    {Point::kReceive, "handoff.receive", true},
    {Point::kPidfd, "handoff.pidfd", true},
    {Point::kSessionRecord, "session.record", true},
    {Point::kWatch, "handoff.watch", true},
    {Point::kWelcome, "handoff.welcome", false},
    {Point::kSend, "handoff.send", true},
    {Point::kMoveFiles, "handoff.move_files", false},
    {Point::kEndSession, "handoff.end_session", false},
    {Point::kLeaveSpace, "handoff.leave_space", false},
    {Point::kForget, "session.forget", false},
    {Point::kRestoreFiles, "restore.files", false},
    {Point::kRestoreSessions, "restore.sessions", false},
    {Point::kRestoreMappings, "restore.mappings", false},
    {Point::kRestored, "restore.done", false},
    {Point::kDeclare, "start.declare", true},
    {Point::kFarewell, "stop.farewell", false},
    {Point::kGiveUp, "stop.give_up", false},
}};

static_assert([] {
  for (std::size_t i = 0; i < kPoints.size(); ++i) {
    if (kPoints[i].point != static_cast<Point>(i)) return false;
  }
  return true;
}());

// The errno with which the step is to fail, 0 to go on. Sets errno to it too, for code that looks there.
int FailAt(Point point);

}  // namespace mapbroker::shm
