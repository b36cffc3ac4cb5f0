#include "arguments.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "gridpool/error.hpp"
#include "text.hpp"

namespace gridpool::cli {
namespace {

std::string display(const Option& option) { return option.letter.empty() ? option.name : option.letter + "/" + option.name; }

std::string usage(const Option& option) {
  return (option.letter.empty() ? "" : option.letter + ", ") + option.name + (option.metavar.empty() ? "" : " " + option.metavar);
}

bool is_number(const std::string& text) {
  char* end = nullptr;
  std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0';
}

}  // namespace

Arguments::Arguments(const Command& command, const std::vector<std::string>& rest) : command_(command.name) {
  std::vector<std::string> names, positionals;
  for (const auto& option : command.options) {
    names.push_back(option.name);
    if (!option.letter.empty()) names.push_back(option.letter);
  }
  bool only_positionals = false;
  for (size_t i = 0; i < rest.size(); ++i) {
    const std::string& word = rest[i];
    if (only_positionals || word.size() < 2 || word[0] != '-' || is_number(word) || word.find(' ') != word.npos) {
      positionals.push_back(word);
      continue;
    }
    if (word == "--") {
      only_positionals = true;
      continue;
    }
    if (word == "--help" || word == "-h") {
      help_ = true;
      return;
    }
    const std::string name = word.substr(0, word.find('='));
    const auto option = std::find_if(command.options.begin(), command.options.end(), [&](const Option& one) { return one.name == name || one.letter == name; });
    if (option == command.options.end()) fail("no option " + name + nearest(name, names));
    std::string value;
    if (name.size() != word.size()) {
      if (option->metavar.empty()) fail("argument " + display(*option) + ": ignored explicit argument " + python_str(word.substr(name.size() + 1)));
      value = word.substr(name.size() + 1);
    } else if (!option->metavar.empty()) {
      const bool next = i + 1 < rest.size() && (rest[i + 1].size() < 2 || rest[i + 1][0] != '-' || is_number(rest[i + 1]));
      if (!next) fail("argument " + display(*option) + ": expected one argument");
      value = rest[++i];
    }
    if (!option->choices.empty() && std::find(option->choices.begin(), option->choices.end(), value) == option->choices.end()) {
      std::vector<std::string> known;
      for (const auto& choice : option->choices) known.push_back(python_str(choice));
      fail("argument " + display(*option) + ": invalid choice: " + python_str(value) + " (choose from " + join(known, ", ") + ")");
    }
    values_[option->name] = value;
  }
  std::vector<std::string> missing;
  for (size_t i = 0; i < command.positionals.size(); ++i) {
    if (i < positionals.size()) {
      values_[command.positionals[i]] = positionals[i];
    } else {
      missing.push_back(command.positionals[i]);
    }
  }
  for (const auto& option : command.options) {
    if (option.required && !has(option.name)) missing.push_back(display(option));
  }
  if (!missing.empty()) fail("the following arguments are required: " + join(missing, ", "));
  if (positionals.size() > command.positionals.size()) {
    positionals.erase(positionals.begin(), positionals.begin() + static_cast<std::ptrdiff_t>(command.positionals.size()));
    fail("unrecognized arguments: " + join(positionals, " "));
  }
}

std::string Arguments::text(const std::string& option, const std::string& otherwise) const { return has(option) ? values_.at(option) : otherwise; }

int64_t Arguments::whole(const std::string& option, int64_t otherwise) const {
  if (!has(option)) return otherwise;
  const std::string& value = values_.at(option);
  char* end = nullptr;
  errno = 0;
  const long long number = std::strtoll(value.c_str(), &end, 10);
  if (value.empty() || *end != '\0' || errno != 0) fail("argument " + option + ": invalid int value: " + python_str(value));
  return number;
}

double Arguments::real(const std::string& option, double otherwise) const {
  if (!has(option)) return otherwise;
  if (!is_number(values_.at(option))) fail("argument " + option + ": invalid float value: " + python_str(values_.at(option)));
  return std::strtod(values_.at(option).c_str(), nullptr);
}

void Arguments::fail(const std::string& message) const { throw UsageError(message + "; `gridpool " + command_ + " --help` shows what there is"); }

std::string help_of(const Command& command) {
  std::string text = "usage: gridpool " + command.name;
  for (const auto& name : command.positionals) text += " " + name;
  text += " [options]\n\n" + command.help + "\n\noptions:\n";
  size_t width = 0;
  for (const auto& option : command.options) width = std::max(width, usage(option).size());
  for (const auto& option : command.options) {
    const std::string choices = option.choices.empty() ? "" : " (" + join(option.choices, ", ") + ")";
    text += "  " + usage(option) + std::string(width - usage(option).size() + 2, ' ') + option.help + choices + "\n";
  }
  return text;
}

}  // namespace gridpool::cli
