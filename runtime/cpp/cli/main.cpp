// `gridpool`: parse, call one function, print. Results on stdout, progress on stderr; exit codes of `python -m runtime`:
// 0, 1 for a fault of its own, 2 for a user's error, 130 for Ctrl-C.
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>

#include "commands.hpp"
#include "files.hpp"
#include "gridpool/error.hpp"
#include "text.hpp"

namespace gridpool::cli {
namespace {

using Function = int (*)(const Arguments&);

const std::vector<std::pair<Command, Function>>& commands() {
  const Option json{"--json", "", "the result as JSON on stdout", {}, "", false};
  const std::vector<Option> engine = {
      {"--backend", "NAME", "which engine", {"auto", "onnx", "tensorrt"}, "", false},
      {"--device", "NAME", "where it runs (default auto: the GPU where it can be used)", {"auto", "cpu", "cuda"}, "", false},
      {"--threads", "N", "CPU threads (default: the backend's choice)", {}, "", false},
      {"--onnxruntime", "FILE", "libonnxruntime.so (default: the system's, else that of a Python wheel, .venv included)", {}, "", false},
  };
  const auto with_engine = [&](std::vector<Option> options) {
    options.insert(options.begin(), json);
    options.insert(options.end(), engine.begin(), engine.end());
    return options;
  };
  static const std::vector<std::pair<Command, Function>> all = {
      {{"run", "answer a question about a video; the answer streams", {"bundle", "video", "question"},
        with_engine({{"--max-new-tokens", "N", "the answer's length at most (default 128)", {}, "", false},
                     {"--temperature", "X", "0 is greedy (default)", {}, "", false},
                     {"--top-p", "X", "nucleus sampling (default 1)", {}, "", false},
                     {"--seed", "N", "of sampling", {}, "", false}})},
       run},
      {{"tokens", "write a video's compressed visual tokens", {"bundle", "video"},
        with_engine({{"--output", "FILE.npz", "where to", {}, "-o", true}})},
       tokens},
      {{"bench", "time every stage: median and p90", {"bundle"},
        with_engine({{"--video", "FILE", "decode and preprocess this file too (default: the recorded input)", {}, "", false},
                     {"--rounds", "N", "rounds that count (default 5)", {}, "", false},
                     {"--max-new-tokens", "N", "of each answer (default 32)", {}, "", false}})},
       bench},
      {{"watch", "answer a question about a stream, again and again", {"bundle", "source", "question"},
        with_engine({{"--every", "TIME", "between answers, e.g. 2s or 500ms (default 2s)", {}, "", false},
                     {"--window", "TIME", "what the sampled frames span (default 8s)", {}, "", false},
                     {"--count", "N", "stop after N answers (default 0: at the end)", {}, "", false},
                     {"--realtime", "", "play a file at its own speed, as a camera would", {}, "", false},
                     {"--max-new-tokens", "N", "of each answer (default 128)", {}, "", false}})},
       watch},
  };
  return all;
}

int command(const std::vector<std::string>& words) {
  std::vector<std::string> names;
  std::string help = "usage: gridpool COMMAND …\n\nAnswer questions about videos from a bundle, without Python.\n\n";
  for (const auto& [one, function] : commands()) {
    names.push_back(python_str(one.name));
    help += "  " + one.name + std::string(10 - one.name.size(), ' ') + one.help + "\n";
  }
  const std::string mend = "; `gridpool --help` shows what there is";
  if (words.empty()) throw UsageError("the following arguments are required: COMMAND" + mend);
  if (words[0] == "--help" || words[0] == "-h") return std::fputs(help.c_str(), stdout) < 0;
  for (const auto& [one, function] : commands()) {
    if (one.name != words[0]) continue;
    const Arguments arguments(one, {words.begin() + 1, words.end()});
    if (arguments.wants_help()) return std::fputs(help_of(one).c_str(), stdout) < 0;
    return function(arguments);
  }
  throw UsageError("argument COMMAND: invalid choice: " + python_str(words[0]) + " (choose from " + join(names, ", ") + ")" + mend);
}

int fail(const std::string& message) {
  std::istringstream words(message);
  std::string line = "error:";
  for (std::string word; words >> word;) line += " " + word;
  std::fprintf(stderr, "%s\n", line.c_str());
  return 2;
}

void interrupted(int) {
  AtomicFile::drop_open_file();
  const char* text = "error: interrupted; nothing that was there before has been changed\n";
  const auto ignored = ::write(2, text, std::strlen(text));
  static_cast<void>(ignored);
  _exit(130);
}

}  // namespace

EngineOptions engine_options(const Arguments& arguments) {
  const std::string threads = arguments.text("--threads", "0");
  const bool fits = !threads.empty() && threads.size() < 7 && std::all_of(threads.begin(), threads.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!fits) throw UsageError("argument --threads: " + threads + " threads; expected 0 (the backend's choice) or more; `gridpool " +
                             arguments.command() + " --help` shows what there is");
  return {arguments.text("--device", "auto"), std::stoi(threads), arguments.text("--onnxruntime", "")};
}

std::string backend(const Arguments& arguments) { return arguments.text("--backend", "auto"); }

EngineOptions placed(const Arguments& arguments, const Bundle& bundle) {
  const Placement placement = place(bundle, backend(arguments), engine_options(arguments));
  if (!placement.note.empty()) say(placement.note);
  return placement.options;
}

void say(const std::string& message) { std::fprintf(stderr, "%s\n", message.c_str()); }

void print(const Arguments& arguments, const OrderedJson& data, const std::string& text) {
  std::puts(arguments.has("--json") ? data.dump(1, ' ', true).c_str() : text.c_str());
}

OrderedJson json_of(const std::vector<std::pair<std::string, double>>& seconds) {
  OrderedJson data = OrderedJson::object();
  for (const auto& [stage, value] : seconds) data[stage] = value;
  return data;
}

}  // namespace gridpool::cli

int main(int count, char** words) {
  std::signal(SIGINT, gridpool::cli::interrupted);
  std::signal(SIGPIPE, SIG_DFL);
  try {
    return gridpool::cli::command({words + 1, words + count});
  } catch (const gridpool::UserError& error) {
    return gridpool::cli::fail(error.what());
  } catch (const std::bad_alloc&) {
    return gridpool::cli::fail("out of memory; free some, or use a bundle with fewer frames or of --precision fp16");
  } catch (const std::exception& error) {
    gridpool::cli::fail(std::string("internal error: ") + error.what() + "; this is a fault of gridpool, please report it");
    return 1;
  }
}
