// mapctl explain and errno: what the numbers in error messages stand for, from the page that states the rules.
#include <cctype>
#include <cerrno>
#include <cstring>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/mapctl/mapctl.h"
#include "client/mapctl/rules.h"

namespace mapbroker::mapctl {
namespace {

struct Rule {
  std::string number;              // "M5"
  std::vector<std::string> cells;  // what stands beside it, with the table's headings
};

// The rows of the page's tables whose first cell is a rule's number, and its chapters ("V: System V shared memory").
std::vector<Rule> Rules() {
  std::vector<Rule> rules;
  std::vector<std::string> headings;
  std::string chapter;
  for (absl::string_view line : absl::StrSplit(kSemantics, '\n')) {
    if (absl::ConsumePrefix(&line, "## ")) {
      chapter = std::string(line.substr(0, line.find(':')));
      if (line.size() > 2 && line[1] == ':') {
        rules.push_back(Rule{chapter, {std::string(absl::StripAsciiWhitespace(line.substr(2)))}});
      }
      continue;
    }
    if (!absl::StartsWith(line, "|")) {
      // What a chapter says outside its tables.
      if (!rules.empty() && rules.back().number == chapter && !line.empty()) rules.back().cells.emplace_back(line);
      continue;
    }
    std::vector<std::string> cells = absl::StrSplit(line, " | ");
    for (std::string& cell : cells)
      cell = std::string(absl::StripAsciiWhitespace(absl::StripPrefix(absl::StripSuffix(cell, "|"), "|")));
    const std::string& first = cells.front();
    const bool numbered = first.size() > 1 && absl::ascii_isupper(static_cast<unsigned char>(first[0])) &&
                          absl::ascii_isdigit(static_cast<unsigned char>(first[1]));
    if (!numbered) {
      if (!absl::StartsWith(first, "-")) headings = cells;
      continue;
    }
    Rule rule{first, {}};
    for (std::size_t i = 1; i < cells.size(); ++i) {
      // Only the profiles' columns need their names.
      const bool named = i < headings.size() && cells.size() > 3 && i > 1;
      rule.cells.push_back(
          named ? absl::StrCat(std::string(headings[i].substr(0, headings[i].find(' '))), ": ", cells[i]) : cells[i]);
    }
    rules.push_back(std::move(rule));
  }
  return rules;
}

void Print(const std::vector<Rule>& rules, const Context& context) {
  if (context.json) {
    nlohmann::json objects = nlohmann::json::array();
    for (const Rule& rule : rules) objects.push_back({{"rule", rule.number}, {"text", rule.cells}});
    std::cout << objects << '\n';
    return;
  }
  for (const Rule& rule : rules) std::cout << rule.number << "  " << absl::StrJoin(rule.cells, "; ") << '\n';
}

// 0 if it is no errno's name.
int ErrnoOf(const std::string& name) {
  for (int error = 1; error < 134; ++error) {
    const char* known = strerrorname_np(error);
    if (known != nullptr && name == known) return error;
  }
  return 0;
}

absl::Status ExplainErrno(const std::string& name, const Context& context) {
  const int error = ErrnoOf(name);
  if (error == 0) return absl::FailedPreconditionError(absl::StrCat(name, " is no errno's name"));
  std::vector<Rule> rules = Rules();
  std::erase_if(rules, [&](const Rule& rule) {
    return std::none_of(rule.cells.begin(), rule.cells.end(), [&](const std::string& cell) {
      const std::size_t at = cell.find(name);
      return at != std::string::npos && (at + name.size() == cell.size() || !std::isalnum(cell[at + name.size()]));
    });
  });
  if (!context.json) std::cout << name << " (" << error << "): " << std::strerror(error) << '\n';
  Print(rules, context);
  return absl::OkStatus();
}

absl::Status Explain(const std::string& text, const Context& context) {
  const std::string wanted = absl::AsciiStrToUpper(text);
  if (ErrnoOf(wanted) != 0) return ExplainErrno(wanted, context);
  std::vector<Rule> rules = Rules();
  // A letter stands for its whole chapter.
  std::erase_if(rules, [&](const Rule& rule) {
    return wanted.size() == 1 ? rule.number[0] != wanted[0] : rule.number != wanted;
  });
  if (rules.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(text, " is no rule and no errno: rules are numbered like M5, errnos are named like EINVAL"));
  }
  Print(rules, context);
  return absl::OkStatus();
}

}  // namespace

void AddExplain(CLI::App& program, Context& context) {
  const auto text = std::make_shared<std::string>();
  CLI::App* explain = program.add_subcommand("explain", "print what a rule says, or which rules answer with an errno");
  explain->add_option("RULE|CODE", *text, "a rule's number (M5), its chapter (M) or an errno's name (EINVAL)")
      ->required();
  explain->callback([text, &context] { context.exit_status = Report(Explain(*text, context)); });
  CLI::App* error = program.add_subcommand("errno", "print what an errno means and which rules answer with it");
  error->add_option("CODE", *text, "the errno's name")->required();
  error->callback(
      [text, &context] { context.exit_status = Report(ExplainErrno(absl::AsciiStrToUpper(*text), context)); });
}

}  // namespace mapbroker::mapctl
