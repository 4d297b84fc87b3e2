// mapctl complete: what a shell may offer for the word at the cursor, from the definition that also parses the line.
#include <iostream>
#include <string>
#include <string_view>

#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

void Offer(const std::string& word, const std::string& description, const std::string& begun) {
  if (word.starts_with(begun)) std::cout << word << '\t' << description << '\n';
}

// The words of a check like "{r,rw,rx}", which is how CLI11 shows a set.
void OfferValues(const CLI::Option& option, const std::string& begun) {
  const std::string type = option.get_type_name();
  const std::size_t open = type.find('{'), close = type.find('}');
  if (open == std::string::npos || close == std::string::npos) return;
  for (const std::string& value : CLI::detail::split(type.substr(open + 1, close - open - 1), ',')) {
    Offer(value, "", begun);
  }
}

}  // namespace

void Complete(CLI::App& program, const std::vector<std::string>& words) {
  const CLI::App* at = &program;
  const CLI::Option* awaits_value = nullptr;
  const std::string begun = words.empty() ? "" : words.back();
  for (std::size_t i = 0; i + 1 < words.size(); ++i) {
    const std::string& word = words[i];
    if (awaits_value != nullptr) {
      awaits_value = nullptr;
    } else if (word.starts_with('-')) {
      const CLI::Option* option = at->get_option_no_throw(word);
      // Those of the program may come after a subcommand too.
      if (option == nullptr) option = program.get_option_no_throw(word);
      if (option != nullptr && option->get_items_expected_max() > 0) awaits_value = option;
    } else {
      const auto named = at->get_subcommands([&](const CLI::App* subcommand) { return subcommand->check_name(word); });
      if (!named.empty()) at = named.front();
    }
  }
  if (awaits_value != nullptr) return OfferValues(*awaits_value, begun);
  if (!begun.starts_with('-')) {
    for (const CLI::App* subcommand : at->get_subcommands(nullptr)) {
      Offer(subcommand->get_name(), subcommand->get_description(), begun);
    }
    return;
  }
  for (const CLI::App* app : {static_cast<const CLI::App*>(at), static_cast<const CLI::App*>(&program)}) {
    for (const CLI::Option* option : app->get_options()) {
      for (const std::string& name : option->get_lnames()) Offer("--" + name, option->get_description(), begun);
    }
    if (at == &program) break;
  }
}

}  // namespace mapbroker::mapctl
