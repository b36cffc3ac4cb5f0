// `gridpool bench`: how long each stage of an answer takes here, as `python -m runtime bench` measures it.
extern "C" {
#include <libavutil/base64.h>
}

#include <algorithm>
#include <memory>

#include "files.hpp"
#include "hardware.hpp"
#include "json.hpp"
#include "npy.hpp"
#include "options.hpp"
#include "stopwatch.hpp"
#include "text.hpp"

namespace gridpool::cli {
namespace {

constexpr const char* kQuestion = "What happens in the video?";

struct BenchOptions {
  CommonOptions common;
  std::string video;
  int64_t rounds = 5, new_tokens = 32;
};

/// The bundle's reference clip as its graph takes it: Polygraphy's JSON stores an array as the base64 of a .npy file.
std::string reference_npy(const Bundle& bundle) {
  const auto path = bundle.file("reference/inputs.json");
  const Json feeds = Json::parse(read_file(path), nullptr, false);
  if (feeds.is_array() && feeds.size() == 1 && feeds[0].size() == 1) {
    const Json& array = member(feeds[0].front(), "array");
    if (array.is_string()) {
      const std::string& text = array.get_ref<const std::string&>();
      std::string bytes(AV_BASE64_DECODE_SIZE(text.size()), '\0');
      const int size = av_base64_decode(reinterpret_cast<uint8_t*>(bytes.data()), text.c_str(), static_cast<int>(bytes.size()));
      if (size > 0) return bytes.substr(0, static_cast<size_t>(size));
    }
  }
  throw BundleError(path.string() + " is not a list of one feed with one input; export the bundle again");
}

/// What is timed: one answer after the other, stage by stage.
class Rounds {
 public:
  /// Loads the engines. ContextError for a prompt that exceeds the context.
  Rounds(const BenchOptions& options, const Bundle& bundle, const EngineOptions& engine) : options_(options) {
    const Manifest& manifest = bundle.manifest();
    const bool has_vision = manifest.has_file("vision.onnx");
    if (has_vision && options.video.empty()) {
      npy_ = reference_npy(bundle);
      pixels_ = npy_view(npy_);
    }
    reset_peak();
    const Stopwatch loading;
    if (has_vision) vision_.emplace(VisionEncoder::open(bundle, options.common.backend, engine));
    if (bundle.has_llm()) decoder_.emplace(LocalDecoder::open(bundle, options.common.backend, engine));
    load_seconds = loading.seconds();
    if (vision_) counts = {{"patch_tokens", manifest.patch_tokens()}, {"visual_tokens", manifest.tokens_per_clip}};
    if (!decoder_) return;
    prompt_.emplace(bundle);
    ids_ = prompt_->ids(kQuestion);
    if (!vision_) stand_in_ = read_file(bundle.file("reference/llm_visual_tokens.npy"));  // instead of a clip's tokens
    const int64_t visual = vision_ ? manifest.tokens_per_clip : npy_view(stand_in_).shape.at(0);
    check_context(ids_.size() + visual + options.new_tokens, decoder_->max_context());
    counts.emplace_back("prompt_tokens", ids_.size() + visual);
    counts.emplace_back("new_tokens", options.new_tokens);
  }

  /// Answer once. Seconds by stage; the decode rate is in tokens a second.
  Seconds answer() {
    Seconds stages;
    Tensor visual;
    if (vision_) visual = encode(stages);
    if (decoder_) generate(vision_ ? visual.view() : npy_view(stand_in_), stages);
    return stages;
  }

  /// {component: "backend on device"}
  OrderedJson backends() {
    const auto where = [](const Engine& engine) { return engine.backend() + " on " + engine.device(); };
    OrderedJson names = OrderedJson::object();
    if (vision_) names["vision"] = where(vision_->engine());
    if (decoder_) names["llm"] = where(decoder_->engine());
    return names;
  }

  double load_seconds = 0;
  std::vector<std::pair<std::string, int64_t>> counts;  // tokens of each kind

 private:
  Tensor encode(Seconds& stages) {
    Tensor input;
    TensorView pixels = pixels_;
    if (!options_.video.empty()) {
      const Preprocessor& preprocessor = vision_->preprocessor();
      double resizing = 0;
      const Stopwatch decoding;
      const Clip clip = sample_frames(options_.video, vision_->frames(), [&](const Image& frame) {
        const Stopwatch one;
        Image resized = preprocessor.resize(frame);
        resizing += one.seconds();
        return resized;
      });
      stages.emplace_back("decode", decoding.seconds() - resizing);
      const Stopwatch normalising;
      input = preprocessor.normalise(clip.frames);
      stages.emplace_back("preprocess", normalising.seconds() + resizing);
      pixels = input.view();
    }
    const Stopwatch encoding;
    Tensor tokens = vision_->tokens(pixels);
    stages.emplace_back("encode+compress", encoding.seconds());
    return tokens;
  }

  void generate(const TensorView& visual, Seconds& stages) {
    const Stopwatch prefill;
    Conversation conversation = decoder_->conversation();
    std::vector<float> logits = conversation.extend(prompt_->embed(ids_, visual).view());
    stages.emplace_back("prefill", prefill.seconds());
    if (vision_) {
      double sum = 0;
      for (const auto& [stage, seconds] : stages) sum += seconds;
      stages.emplace_back("time to first token", sum);
    }
    const Stopwatch decoding;
    const Chooser choose = Sampling{}.chooser();
    for (int64_t i = 0; i < options_.new_tokens; ++i) logits = conversation.extend(prompt_->embed(choose(logits)).view());
    stages.emplace_back("decode rate", static_cast<double>(options_.new_tokens) / decoding.seconds());
  }

  const BenchOptions& options_;
  std::string npy_, stand_in_;
  TensorView pixels_;
  std::optional<VisionEncoder> vision_;
  std::optional<LocalDecoder> decoder_;
  std::optional<Prompt> prompt_;
  PromptIds ids_;
};

using Samples = std::vector<std::pair<std::string, std::vector<double>>>;  // by stage, a value a round

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - static_cast<double>(low));
}

/// One round to warm up, which does not count, then those that do.
Samples measure(Rounds& rounds, int64_t count) {
  Samples samples;
  for (int64_t number = 0; number <= count; ++number) {
    const Stopwatch stopwatch;
    const Seconds measured = rounds.answer();
    log((number == 0 ? "warm-up" : concat("round ", number, " of ", count)) + format(": %.2f s", stopwatch.seconds()));
    for (size_t i = 0; number > 0 && i < measured.size(); ++i) {
      if (number == 1) samples.push_back({measured[i].first, {}});
      samples[i].second.push_back(measured[i].second);
    }
  }
  return samples;
}

void bench(const BenchOptions& options) {
  const Bundle bundle = Bundle::open(options.common.bundle);
  const EngineOptions engine = placed(options.common, bundle);
  Rounds rounds(options, bundle, engine);
  const Samples samples = measure(rounds, options.rounds);
  const std::string input = options.video.empty() ? "the bundle's reference input" : options.video;
  const OrderedJson machine = hardware(engine), backends = rounds.backends();
  OrderedJson rows = OrderedJson::array(), counts = OrderedJson::object();
  std::vector<std::vector<std::string>> lines = {{concat("median of ", options.rounds), "median", "p90", ""}};
  for (const auto& [stage, values] : samples) {
    const bool is_rate = stage == "decode rate";
    // p90 is the value that nine of ten rounds reach or beat: of rates the tenth percentile.
    const double median = quantile(values, 0.5), p90 = quantile(values, is_rate ? 0.1 : 0.9);
    const char *number = is_rate ? "%.1f" : "%.4f", *unit = is_rate ? "tokens/s" : "s";
    rows.push_back({{"stage", stage}, {"unit", unit}, {"median", median}, {"p90", p90}});
    lines.push_back({stage, format(number, median), format(number, p90), unit});
  }
  std::vector<std::string> counted, where;
  for (auto [name, count] : rounds.counts) {
    counts[name] = count;
    std::replace(name.begin(), name.end(), '_', ' ');
    counted.push_back(thousands(count) + " " + name);
  }
  for (const auto& [component, backend] : backends.items()) where.push_back(component + " " + backend.get<std::string>());
  const int64_t peak = peak_rss();
  const std::string threads = machine["threads"].is_string() ? machine["threads"].get<std::string>() : machine["threads"].dump();
  print(options.common.json,
        {{"bundle", bundle.path().string()}, {"input", input}, {"rows", rows}, {"load_seconds", rounds.load_seconds}, {"peak_rss", peak},
         {"tokens", counts}, {"rounds", options.rounds}, {"backends", backends}, {"hardware", machine}},
        concat(bundle.path().string(), ": ", input, ", ", join(counted), "\n", machine["cpu"].get<std::string>(), ", ", machine["cores"].dump(),
               " cores, ", size_text(machine["memory"].get<double>()), " memory; threads: ", threads, "; ", join(where), "\n\n", table(lines),
               format("\n\nengines loaded in %.2f s, peak memory ", rounds.load_seconds), size_text(static_cast<double>(peak))));
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* command = app.add_subcommand("bench", "time every stage: median and p90");
  const auto options = std::make_shared<BenchOptions>();
  add_common(*command, options->common);
  command->add_option("--video", options->video, "decode and preprocess this file too; default: the recorded input")->type_name("FILE");
  command->add_option("--rounds", options->rounds, "rounds that count")->type_name("N")->transform(integer(1));
  command->add_option("--max-new-tokens", options->new_tokens, "length of each answer")->type_name("N")->transform(integer(1));
  command->callback([options] { bench(*options); });
}

}  // namespace gridpool::cli
