#include "options.hpp"

#include <charconv>
#include <cstdlib>

#include "output.hpp"
#include "text.hpp"

namespace gridpool::cli {

void add_common(CLI::App& command, CommonOptions& options) {
  command.add_option("bundle", options.bundle, "directory that `python -m export` wrote")->required();
  command.add_flag("--json", options.json, "print the result as JSON on stdout")->disable_flag_override();
  command.add_option("--backend", options.backend, "inference engine")->type_name("NAME")->check(CLI::IsMember({"auto", "onnx", "tensorrt"}));
  command.add_option("--device", options.engine.device, "where it runs; auto is the GPU if it can be used, else the CPU")
      ->type_name("NAME")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command.add_option("--threads", options.engine.threads, "CPU threads; 0 is the backend's choice")->type_name("N")->transform(integer(0, 999999));
  command.add_option("--onnxruntime", options.engine.onnxruntime, "libonnxruntime.so; default: the system's, else that of a Python wheel")
      ->type_name("FILE");
}

CLI::Validator integer(int64_t least, int64_t most) {
  const auto parse = [=](std::string& text) -> std::string {
    int64_t number = 0;
    const char* end = text.data() + text.size();
    const auto [stop, fault] = std::from_chars(text.data(), end, number);
    if (fault != std::errc{} || stop != end || number < least || number > most) {
      const std::string limit = most == INT64_MAX ? concat(" of at least ", least) : concat(" from ", least, " to ", most);
      return "got \"" + text + "\", expected an integer" + limit;
    }
    text = std::to_string(number);  // without leading zeros, which CLI11 would read as octal
    return "";
  };
  return CLI::Validator(parse, "");
}

CLI::Validator duration() {
  const auto parse = [](std::string& text) -> std::string {
    char* unit = nullptr;
    double seconds = std::strtod(text.c_str(), &unit);
    const std::string_view name = unit;
    if (name == "ms") seconds /= 1000;
    const bool is_time = unit != text.c_str() && (name.empty() || name == "s" || name == "ms");
    if (!is_time || !(seconds >= 0.001 && seconds <= 86400)) {
      return "got \"" + text + "\", expected a time from 1ms to 86400s, such as 2s or 500ms";
    }
    text = format("%.17g", seconds);
    return "";
  };
  return CLI::Validator(parse, "");
}

EngineOptions placed(const CommonOptions& options, const Bundle& bundle) {
  const Placement placement = place(bundle, options.backend, options.engine);
  if (!placement.note.empty()) log(placement.note);
  return placement.options;
}

}  // namespace gridpool::cli
