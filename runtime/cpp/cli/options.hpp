// The commands, the options that they share, and the values that options accept.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "gridpool/chat.hpp"

namespace gridpool::cli {

/// What every command is told about its engine and its output.
struct CommonOptions {
  bool json = false;
  std::string bundle, backend = "auto";
  EngineOptions engine;
};

/// The argument `bundle` and the options of CommonOptions.
void add_common(CLI::App& command, CommonOptions& options);

/// Accepts a decimal integer from `least` to `most`.
CLI::Validator integer(int64_t least, int64_t most = INT64_MAX);

/// Accepts a time from 1ms to a day, such as "2s" or "500ms", and hands it on in seconds.
CLI::Validator duration();

/// Each declares a command, which runs when the command line is parsed.
void add_run(CLI::App& app);
void add_tokens(CLI::App& app);
void add_bench(CLI::App& app);
void add_watch(CLI::App& app);

/// The engine's options with a device; if `auto` had a choice, the reason is logged.
EngineOptions placed(const CommonOptions& options, const Bundle& bundle);

}  // namespace gridpool::cli
