// Events: who is told what, and what is lost.
#include "daemon/events.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "daemon/log.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {
namespace {

constexpr std::chrono::seconds kLong(60);

void TellMapped(Events& events, std::uint64_t session) {
  events.Tell(EventKind::kMapped, [&] { return Event{.kind = EventKind::kMapped, .session = session}; });
}

Events::Watcher::Portion Next(Events::Watcher& watcher, std::size_t most = 1'000'000,
                              std::chrono::seconds patience = kLong) {
  auto portion = watcher.Next(most, std::chrono::steady_clock::now() + patience);
  EXPECT_TRUE(portion.has_value());
  return portion ? *portion : Events::Watcher::Portion();
}

std::vector<std::uint64_t> SessionsOf(const Events::Watcher::Portion& portion) {
  std::vector<std::uint64_t> sessions;
  for (const auto& event : portion.events) sessions.push_back(event->session);
  return sessions;
}

TEST(Events, AreNotMadeWhileNobodyIsToSeeThemButAreCounted) {
  Events events;
  const auto fail = [&]() -> Event {
    ADD_FAILURE() << "made for nobody";
    return Event{.kind = EventKind::kMapped};
  };
  events.Tell(EventKind::kMapped, fail);
  events.Tell(EventKind::kMapped, fail);
  EXPECT_EQ(events.told(EventKind::kMapped), 2u);
  EXPECT_EQ(events.told(EventKind::kUnmapped), 0u);
}

TEST(Events, ComeInOrderFromWhenSomebodyWatches) {
  Events events;
  TellMapped(events, 1);
  const auto one = *events.Watch("");
  TellMapped(events, 2);
  const auto two = *events.Watch("");
  TellMapped(events, 3);
  TellMapped(events, 4);
  EXPECT_EQ(SessionsOf(Next(*one, 2)), (std::vector<std::uint64_t>{2, 3}));
  EXPECT_EQ(SessionsOf(Next(*one)), (std::vector<std::uint64_t>{4}));
  EXPECT_EQ(SessionsOf(Next(*two)), (std::vector<std::uint64_t>{3, 4}));
  EXPECT_TRUE(SessionsOf(Next(*two, 1, std::chrono::seconds(0))).empty());
}

TEST(Events, AreLostByWhoDoesNotTakeThemAndHeIsToldHowMany) {
  Events events;
  const auto slow = *events.Watch("");
  constexpr std::uint64_t kMore = 100;
  for (std::uint64_t i = 1; i <= Events::kKept + kMore; ++i) TellMapped(events, i);
  const Events::Watcher::Portion portion = Next(*slow);
  EXPECT_EQ(portion.lost, kMore);
  ASSERT_EQ(portion.events.size(), Events::kKept);
  EXPECT_EQ(portion.events.front()->session, kMore + 1);
  EXPECT_EQ(events.lost(), kMore);
  TellMapped(events, 7);
  EXPECT_EQ(Next(*slow).lost, 0u);
}

TEST(Events, WakeWhoWaits) {
  Events events;
  const auto watcher = *events.Watch("");
  std::thread teller([&] { TellMapped(events, 5); });
  EXPECT_EQ(SessionsOf(Next(*watcher)), (std::vector<std::uint64_t>{5}));
  teller.join();
}

TEST(Events, OfManyTellersAreAllThere) {
  Events events;
  const auto watcher = *events.Watch("");
  constexpr std::size_t kTellers = 4, kEach = Events::kKept / kTellers;
  std::vector<std::thread> tellers;
  for (std::size_t i = 0; i < kTellers; ++i) {
    tellers.emplace_back([&] {
      for (std::size_t at = 0; at < kEach; ++at) TellMapped(events, 1);
    });
  }
  std::size_t seen = 0;
  while (seen < kTellers * kEach) {
    const auto portion = Next(*watcher, 100);
    seen += portion.events.size() + portion.lost;
  }
  for (std::thread& teller : tellers) teller.join();
  EXPECT_EQ(seen, kTellers * kEach);
}

TEST(Events, AreWatchedBySoManyOfOneUserAndSoManyInAll) {
  Events events;
  std::vector<std::unique_ptr<Events::Watcher>> watchers;
  for (std::size_t i = 0; i < Events::kMaxWatchersOfOne; ++i) watchers.push_back(*events.Watch("uid 1"));
  EXPECT_EQ(nommu::ErrnoOf(events.Watch("uid 1").status()), EAGAIN);
  while (watchers.size() < Events::kMaxWatchers) watchers.push_back(*events.Watch(""));
  EXPECT_EQ(nommu::ErrnoOf(events.Watch("").status()), EAGAIN);
  EXPECT_EQ(events.watchers(), Events::kMaxWatchers);
  watchers.clear();
  EXPECT_EQ(events.watchers(), 0u);
  EXPECT_TRUE(events.Watch("uid 1").ok());
}

TEST(Events, EndForAllWhenTheDaemonStops) {
  Events events;
  const auto watcher = *events.Watch("");
  std::thread closer([&] { events.Close(); });
  EXPECT_EQ(watcher->Next(1, std::chrono::steady_clock::now() + kLong), std::nullopt);
  closer.join();
  EXPECT_EQ(nommu::ErrnoOf(events.Watch("").status()), ECANCELED);
}

TEST(EventText, NamesSessionProcessRuleAndErrno) {
  EXPECT_EQ(TextOf({.kind = EventKind::kRefused,
                    .session = 3,
                    .pid = 12,
                    .uid = 1000,
                    .call = "Mmap",
                    .error = EINVAL,
                    .rule = "M5",
                    .sentence = "length is 0"}),
            "session 3 of process 12 (uid 1000): Mmap refused: EINVAL (M5): length is 0");
  EXPECT_EQ(TextOf({.kind = EventKind::kSessionEnded, .session = 3, .pid = 12}),
            "session 3 of process 12 (uid 0): ended");
  EXPECT_EQ(TextOf({.kind = EventKind::kMapped, .session = 1, .pid = 2, .address = 0x1000, .length = 5, .path = "/f"}),
            "session 1 of process 2 (uid 0): mapped 0x00001000 5 bytes /f");
}

TEST(EventText, IsOneLineWhateverANameHolds) {
  const std::string text = TextOf({.kind = EventKind::kMapped, .session = 1, .pid = 2, .path = "/a\n[error] \x1b[2Jb"});
  EXPECT_EQ(text, "session 1 of process 2 (uid 0): mapped /a\\012[error] \\033[2Jb");
}

}  // namespace
}  // namespace mapbroker
