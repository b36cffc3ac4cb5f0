// `gridpool bench`: how long each stage of an answer takes here, as `python -m runtime bench` measures and prints it.
#include <sched.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>

extern "C" {
#include <libavutil/base64.h>
}

#include "commands.hpp"
#include "files.hpp"
#include "gridpool/chat.hpp"
#include "json.hpp"
#include "npy.hpp"
#include "text.hpp"

namespace gridpool::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kQuestion = "What happens in the video?";

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// One row; p90 is the value that nine of ten rounds did not pass on the slow side (for rates: the low side).
struct Measured {
  std::string stage, unit;
  double median, p90;
};

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - static_cast<double>(low));
}

/// The reference clip of a bundle, as its graph takes it: Polygraphy's JSON holds an array as the base64 of a .npy file.
std::string reference_npy(const Bundle& bundle) {
  const auto path = bundle.file("reference/inputs.json");
  Json feeds;
  std::string why;
  if (parse_json(read_file(path), feeds, why) && feeds.is_array() && feeds.size() == 1 && feeds[0].size() == 1) {
    const Json& array = member(feeds[0].front(), "array");
    if (array.is_string()) {
      const std::string& text = array.get_ref<const std::string&>();
      std::string bytes(AV_BASE64_DECODE_SIZE(text.size()), '\0');
      const int size = av_base64_decode(reinterpret_cast<uint8_t*>(bytes.data()), text.c_str(), static_cast<int>(bytes.size()));
      if (size > 0) return bytes.substr(0, static_cast<size_t>(size));
    }
  }
  throw BundleError(path.string() + " is no list of one feed with one input; export the bundle again");
}

std::string line_of(const char* file, const std::string& start) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, start.size(), start) == 0) return line.substr(line.find_first_not_of(" \t:", start.size()));
  }
  return "";
}

/// From here on the peak counts, where the kernel lets a process forget.
void reset_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

int64_t peak_rss() {
  const std::string line = line_of("/proc/self/status", "VmHWM");
  if (!line.empty()) return std::stoll(line) << 10;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss << 10;
}

OrderedJson hardware(const EngineOptions& options) {
  utsname system{};
  uname(&system);
  std::string cpu = line_of("/proc/cpuinfo", "model name");
  if (cpu.empty()) {
    std::ifstream board("/proc/device-tree/model");
    std::getline(board, cpu, '\0');
  }
  cpu_set_t usable;
  CPU_ZERO(&usable);
  const int cores = sched_getaffinity(0, sizeof usable, &usable) == 0 ? CPU_COUNT(&usable) : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  return {{"cpu", cpu.empty() ? system.machine : cpu},
          {"cores", cores},
          {"threads", options.threads ? OrderedJson(options.threads) : OrderedJson("backend's choice")},
          {"memory", static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE)},
          {"device", options.device},
          {"system", std::string(system.sysname) + " " + system.machine},
          {"compiler", std::string("C++ ") + __VERSION__}};
}

std::string size_text(double count) {
  for (const char* unit : {"B", "KB", "MB"}) {
    if (count < 999.5) return format(unit[1] ? "%.1f %s" : "%.0f %s", count, unit);
    count /= 1000;
  }
  return format("%.1f GB", count);
}

std::string thousands(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), ",");
  return text;
}

size_t width_of(const std::string& text) {  // in characters, not bytes
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

/// One line a row under a ruled header; the numbers are flush right.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  std::string text;
  for (size_t line = 0; line < rows.size(); ++line) {
    std::string row, rule;
    for (size_t i = 0; i < rows[line].size(); ++i) {
      const std::string pad(widths[i] - width_of(rows[line][i]), ' ');
      row += (i ? "  " : "") + (i == 1 || i == 2 ? pad + rows[line][i] : rows[line][i] + pad);
      if (i) rule += "  ";
      for (size_t c = 0; c < widths[i]; ++c) rule += "─";
    }
    row.erase(row.find_last_not_of(' ') + 1);
    text += (line ? "\n" : "") + row + (line == 0 ? "\n" + rule : "");
  }
  return text;
}

/// One answer after the other, timed stage by stage.
class Rounds {
 public:
  Rounds(const Arguments& arguments, const Bundle& bundle, const EngineOptions& options, int64_t new_tokens)
      : bundle_(bundle), new_tokens_(new_tokens), video_(arguments.text("--video", "")) {
    const bool has_vision = bundle.manifest().has_file("vision.onnx");
    if (has_vision && video_.empty()) {
      npy_ = reference_npy(bundle);
      pixels_ = npy_view(npy_);
    }
    reset_peak();
    const auto start = Clock::now();
    if (has_vision) vision_.emplace(VisionEncoder::open(bundle, backend(arguments), options));
    if (bundle.has_llm()) decoder_.emplace(LocalDecoder::open(bundle, backend(arguments), options));
    load_seconds = since(start);
    if (vision_) counts = {{"patch_tokens", bundle.manifest().patch_tokens()}, {"visual_tokens", bundle.manifest().tokens_per_clip}};
    if (!decoder_) return;
    prompt_.emplace(bundle);
    ids_ = prompt_->ids(kQuestion);
    if (!vision_) {  // the reference prompt's tokens stand in for a clip's
      stand_in_ = read_file(bundle.file("reference/llm_visual_tokens.npy"));
    }
    const int64_t visual = vision_ ? bundle.manifest().tokens_per_clip : npy_view(stand_in_).shape.at(0);
    check_context(ids_.size() + visual + new_tokens, decoder_->max_context());
    counts.emplace_back("prompt_tokens", ids_.size() + visual);
    counts.emplace_back("new_tokens", new_tokens);
  }

  /// Seconds by stage, the decode row a rate.
  Seconds operator()() {
    Seconds stages;
    Tensor visual;
    if (vision_) visual = see(stages);
    if (decoder_) answer(vision_ ? visual.view() : npy_view(stand_in_), stages);
    return stages;
  }

  OrderedJson backends() {
    OrderedJson names = OrderedJson::object();
    if (vision_) names["vision"] = vision_->engine().backend() + " on " + vision_->engine().device();
    if (decoder_) names["llm"] = decoder_->engine().backend() + " on " + decoder_->engine().device();
    return names;
  }

  double load_seconds = 0;
  std::vector<std::pair<std::string, int64_t>> counts;

 private:
  Tensor see(Seconds& stages) {
    Tensor input;
    TensorView pixels = pixels_;
    if (!video_.empty()) {
      const Preprocessor& preprocessor = vision_->preprocessor();
      double resizing = 0;
      auto start = Clock::now();
      const Clip clip = sample_frames(video_, vision_->frames(), [&](const Image& frame) {
        const auto begin = Clock::now();
        Image resized = preprocessor.resize(frame);
        resizing += since(begin);
        return resized;
      });
      stages.emplace_back("decode", since(start) - resizing);
      start = Clock::now();
      input = preprocessor.normalise(clip.frames);
      stages.emplace_back("preprocess", since(start) + resizing);
      pixels = input.view();
    }
    const auto start = Clock::now();
    Tensor tokens = vision_->tokens(pixels);
    stages.emplace_back("encode+compress", since(start));
    return tokens;
  }

  void answer(const TensorView& visual, Seconds& stages) {
    const auto start = Clock::now();
    Conversation conversation = decoder_->conversation();
    std::vector<float> logits = conversation.extend(prompt_->embed(ids_, visual).view());
    stages.emplace_back("prefill", since(start));
    if (vision_) {
      double sum = 0;
      for (const auto& [stage, seconds] : stages) sum += seconds;
      stages.emplace_back("time to first token", sum);
    }
    const auto first = Clock::now();
    const Chooser choose = Sampling{}.chooser();
    for (int64_t i = 0; i < new_tokens_; ++i) logits = conversation.extend(prompt_->embed(choose(logits)).view());
    stages.emplace_back("decode rate", static_cast<double>(new_tokens_) / since(first));
  }

  const Bundle& bundle_;
  int64_t new_tokens_;
  std::string video_, npy_, stand_in_;
  TensorView pixels_;
  std::optional<VisionEncoder> vision_;
  std::optional<LocalDecoder> decoder_;
  std::optional<Prompt> prompt_;
  PromptIds ids_;
};

}  // namespace

int bench(const Arguments& arguments) {
  const int64_t rounds = arguments.whole("--rounds", 5), new_tokens = arguments.whole("--max-new-tokens", 32);
  if (rounds < 1) throw EngineError(format("rounds is %lld, expected at least 1", static_cast<long long>(rounds)));
  if (new_tokens < 1) throw EngineError(format("new tokens is %lld, expected at least 1", static_cast<long long>(new_tokens)));
  const Bundle bundle = Bundle::open(arguments["bundle"]);
  const EngineOptions engine = placed(arguments, bundle);
  Rounds round(arguments, bundle, engine, new_tokens);
  std::vector<std::pair<std::string, std::vector<double>>> stages;
  for (int64_t number = -1; number < rounds; ++number) {
    const auto start = Clock::now();
    const Seconds measured = round();
    say(number < 0 ? format("warm-up: %.2f s", since(start))
                   : format("round %lld of %lld: %.2f s", static_cast<long long>(number + 1), static_cast<long long>(rounds), since(start)));
    for (size_t i = 0; number >= 0 && i < measured.size(); ++i) {
      if (number == 0) stages.push_back({measured[i].first, {}});
      stages[i].second.push_back(measured[i].second);
    }
  }
  const std::string input = arguments.text("--video", "the bundle's reference input");
  const OrderedJson facts = hardware(engine), backends = round.backends();
  OrderedJson rows = OrderedJson::array(), counts = OrderedJson::object();
  std::vector<std::vector<std::string>> lines = {{"median of " + std::to_string(rounds), "median", "p90", ""}};
  for (const auto& [stage, values] : stages) {
    const bool is_rate = stage == "decode rate";
    const double median = quantile(values, 0.5), p90 = quantile(values, is_rate ? 0.1 : 0.9);
    rows.push_back({{"stage", stage}, {"unit", is_rate ? "tokens/s" : "s"}, {"median", median}, {"p90", p90}});
    const char* number = is_rate ? "%.1f" : "%.4f";
    lines.push_back({stage, format(number, median), format(number, p90), is_rate ? "tokens/s" : "s"});
  }
  std::vector<std::string> counted, where;
  for (auto [name, count] : round.counts) {
    counts[name] = count;
    std::replace(name.begin(), name.end(), '_', ' ');
    counted.push_back(thousands(count) + " " + name);
  }
  for (const auto& [half, backend] : backends.items()) where.push_back(half + " " + backend.get<std::string>());
  const int64_t peak = peak_rss();
  const std::string threads = facts["threads"].is_string() ? facts["threads"].get<std::string>() : facts["threads"].dump();
  print(arguments,
        {{"bundle", bundle.path().string()}, {"input", input}, {"rows", rows}, {"load_seconds", round.load_seconds}, {"peak_rss", peak}, {"tokens", counts}, {"rounds", rounds}, {"backends", backends}, {"hardware", facts}},
        bundle.path().string() + ": " + input + ", " + join(counted, ", ") + "\n" + facts["cpu"].get<std::string>() + ", " + facts["cores"].dump() +
            " cores, " + size_text(facts["memory"].get<double>()) + " memory; threads: " + threads + "; " + join(where, ", ") + "\n\n" + table(lines) +
            format("\n\nengines loaded in %.2f s, peak memory %s", round.load_seconds, size_text(static_cast<double>(peak)).c_str()));
  return 0;
}

}  // namespace gridpool::cli
