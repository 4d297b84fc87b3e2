#include "daemon/event_source.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "shm_backend/unique_fd.h"

namespace mapbroker {
namespace {

struct Loop {
  Loop() { sd_event_new(&event); }
  ~Loop() { sd_event_unref(event); }
  sd_event* event = nullptr;
  // Always ready.
  shm::UniqueFd ready = shm::UniqueFd(eventfd(1, EFD_CLOEXEC));
  int turns = 0, events = 0;
  EventSource repeated, watched;
};

TEST(EventSource, WhatComesInTurnsLetsAllOthersHaveTheirs) {
  Loop loop;
  loop.repeated = InTurns<[](Loop& at) { ++at.turns; }>(loop.event, loop);
  loop.watched = OnEvents<[](Loop& at) { ++at.events; }>(loop.event, loop.ready.get(), EPOLLIN, loop);
  for (int i = 0; i < 1000; ++i) ASSERT_GE(sd_event_run(loop.event, UINT64_MAX), 0);
  EXPECT_GE(loop.turns, 300);
  EXPECT_GE(loop.events, 300);
}

TEST(EventSource, MayBeDestroyedByItsFunction) {
  Loop loop;
  loop.repeated = InTurns<[](Loop& at) {
    ++at.turns;
    at.repeated.reset();
  }>(loop.event, loop);
  loop.watched = OnEvents<[](Loop& at) { ++at.events; }>(loop.event, loop.ready.get(), EPOLLIN, loop);
  while (loop.events < 100) ASSERT_GE(sd_event_run(loop.event, UINT64_MAX), 0);
  EXPECT_EQ(loop.turns, 1);
}

TEST(EventSource, AfterItsTimeComesOnce) {
  Loop loop;
  loop.repeated = After<[](Loop& at) { ++at.turns; }>(loop.event, 1000, loop);
  loop.watched = OnEvents<[](Loop& at) { ++at.events; }>(loop.event, loop.ready.get(), EPOLLIN, loop);
  while (loop.turns == 0) ASSERT_GE(sd_event_run(loop.event, UINT64_MAX), 0);
  for (int i = 0; i < 100; ++i) ASSERT_GE(sd_event_run(loop.event, UINT64_MAX), 0);
  EXPECT_EQ(loop.turns, 1);
}

}  // namespace
}  // namespace mapbroker
