// Who may connect.
#include "daemon/session/access.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "daemon/nommu/refusal.h"

namespace mapbroker::session {
namespace {

using nommu::ErrnoOf;

const Credentials kRoot{1, 0, 0}, kAlice{2, 1000, 1000, {50, 60}}, kBob{3, 1001, 1001, {50}};

int Connecting(const AccessRules& rules, const Credentials& who) { return ErrnoOf(Access(rules).MayConnect(who)); }

TEST(Access, WithoutRulesEverybodyMay) {
  EXPECT_EQ(Connecting({}, kRoot), 0);
  EXPECT_EQ(Connecting({}, kAlice), 0);
  EXPECT_TRUE(Access().MayOpen(kAlice, /*read_only=*/false).ok());
}

TEST(Access, WhereSomeAreAllowedTheOthersAreNotButRootIs) {
  const AccessRules users{.allow = {.users = {1000}, .groups = {}}, .deny = {}, .read_only = {}};
  EXPECT_EQ(Connecting(users, kAlice), 0);
  EXPECT_EQ(Connecting(users, kBob), EACCES);
  EXPECT_EQ(Connecting(users, kRoot), 0);
  const AccessRules groups{.allow = {.users = {}, .groups = {60}}, .deny = {}, .read_only = {}};
  EXPECT_EQ(Connecting(groups, kAlice), 0) << "a supplementary group";
  EXPECT_EQ(Connecting(groups, kBob), EACCES);
}

TEST(Access, DenyComesBeforeAllow) {
  const AccessRules rules{
      .allow = {.users = {1000, 1001}, .groups = {}}, .deny = {.users = {0}, .groups = {60}}, .read_only = {}};
  EXPECT_EQ(Connecting(rules, kAlice), EACCES);
  EXPECT_EQ(Connecting(rules, kBob), 0);
  EXPECT_EQ(Connecting(rules, kRoot), EACCES);
}

TEST(Access, WhoMayOnlyReadOpensNoSessionThatWrites) {
  Access access({.allow = {}, .deny = {}, .read_only = {.users = {1000}, .groups = {}}});
  EXPECT_EQ(ErrnoOf(access.MayOpen(kAlice, /*read_only=*/false)), EACCES);
  EXPECT_EQ(ErrnoOf(access.MayOpen(kAlice, /*read_only=*/true)), 0);
  EXPECT_EQ(ErrnoOf(access.MayOpen(kBob, /*read_only=*/false)), 0);
  access.Set({});
  EXPECT_EQ(ErrnoOf(access.MayOpen(kAlice, /*read_only=*/false)), 0);
}

}  // namespace
}  // namespace mapbroker::session
