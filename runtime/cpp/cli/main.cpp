// `gridpool`: parse, run one command, print. Exit codes: 0, 1 for a bug, 2 for a user's error, 130 for Ctrl-C.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>

#include "files.hpp"
#include "options.hpp"
#include "text.hpp"

namespace {

/// `message` on one line of stderr; returns the exit code of a user's error.
int fail(const std::string& message) {
  std::istringstream words(message);
  std::string line = "error:";
  for (std::string word; words >> word;) line += " " + word;
  std::fprintf(stderr, "%s\n", line.c_str());
  return 2;
}

void interrupted(int) {
  gridpool::AtomicFile::drop_open_file();
  const char* text = "error: interrupted; existing files were not changed\n";
  const auto ignored = ::write(2, text, std::strlen(text));
  static_cast<void>(ignored);
  _exit(130);
}

int parse_and_run(CLI::App& app, int count, char** words) {
  try {
    app.parse(count, words);
    if (app.get_subcommands().empty()) throw CLI::RequiredError("a command");
    return 0;
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    const auto commands = app.get_subcommands();
    const std::string name = commands.empty() ? "gridpool" : "gridpool " + commands[0]->get_name();
    const bool is_unexpected = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError);
    const std::string fault = is_unexpected ? "unexpected: " + gridpool::join(app.remaining(true), " ") : error.what();
    return fail(fault + "; `" + name + " --help` shows what it accepts");
  }
}

}  // namespace

int main(int count, char** words) {
  std::signal(SIGINT, interrupted);
  std::signal(SIGPIPE, SIG_DFL);
  CLI::App app("Answer questions about videos from a bundle, without Python.", "gridpool");
  app.require_subcommand(0, 1);  // so that a word that is not a command is named; none at all is refused after parsing
  app.option_defaults()->always_capture_default()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  gridpool::cli::add_run(app);
  gridpool::cli::add_tokens(app);
  gridpool::cli::add_bench(app);
  gridpool::cli::add_watch(app);
  try {
    return parse_and_run(app, count, words);
  } catch (const gridpool::UserError& error) {
    return fail(error.what());
  } catch (const std::bad_alloc&) {
    return fail("out of memory; free some, or use a bundle with fewer frames or of --precision fp16");
  } catch (const std::exception& error) {
    fail(std::string("internal error: ") + error.what() + "; this is a bug in gridpool, please report it");
    return 1;
  }
}
