// The commands: each `add_` declares one, which runs when the command line is parsed.
#pragma once

#include <CLI/CLI.hpp>

namespace gridpool::cli {

void add_run(CLI::App& app);
void add_tokens(CLI::App& app);
void add_bench(CLI::App& app);
void add_watch(CLI::App& app);

}  // namespace gridpool::cli
