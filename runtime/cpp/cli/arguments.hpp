// Command lines whose faults are one line, in the words of `python -m runtime`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace gridpool::cli {

struct Option {
  std::string name;                  ///< "--threads"; flags take no value
  std::string metavar;               ///< "" for a flag
  std::string help;
  std::vector<std::string> choices;  ///< {} for any value
  std::string letter;                ///< "-o", or ""
  bool required = false;
};

struct Command {
  std::string name, help;
  std::vector<std::string> positionals;
  std::vector<Option> options;
};

/// What was typed for one command.
class Arguments {
 public:
  /// Throws UsageError for what the command does not have; `rest` is what follows the command's name.
  Arguments(const Command& command, const std::vector<std::string>& rest);

  const std::string& operator[](const std::string& positional) const { return values_.at(positional); }
  bool has(const std::string& option) const { return values_.count(option) > 0; }
  std::string text(const std::string& option, const std::string& otherwise) const;
  int64_t whole(const std::string& option, int64_t otherwise) const;
  double real(const std::string& option, double otherwise) const;
  const std::string& command() const { return command_; }
  bool wants_help() const { return help_; }

 private:
  [[noreturn]] void fail(const std::string& message) const;
  std::string command_;
  std::map<std::string, std::string> values_;
  bool help_ = false;
};

/// The text of `gridpool COMMAND --help`.
std::string help_of(const Command& command);

}  // namespace gridpool::cli
