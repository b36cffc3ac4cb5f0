// `gridpool bench`: how long each stage of an answer takes here, as `python -m runtime bench` measures it.
#include <algorithm>
#include <memory>

#include "commands.hpp"
#include "hardware.hpp"
#include "rounds.hpp"
#include "stopwatch.hpp"
#include "text.hpp"

namespace gridpool::cli {
namespace {

struct BenchOptions {
  CommonOptions common;
  std::string video;
  int64_t rounds = 5, new_tokens = 32;
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
Samples measure(Rounds& round, int64_t rounds) {
  Samples samples;
  for (int64_t number = 0; number <= rounds; ++number) {
    const Stopwatch stopwatch;
    const Seconds measured = round();
    log((number == 0 ? "warm-up" : concat("round ", number, " of ", rounds)) + format(": %.2f s", stopwatch.seconds()));
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
  Rounds round(options.common, bundle, engine, options.video, options.new_tokens);
  const Samples samples = measure(round, options.rounds);
  const std::string input = options.video.empty() ? "the bundle's reference input" : options.video;
  const OrderedJson machine = hardware(engine), backends = round.backends();
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
  for (auto [name, count] : round.counts) {
    counts[name] = count;
    std::replace(name.begin(), name.end(), '_', ' ');
    counted.push_back(thousands(count) + " " + name);
  }
  for (const auto& [component, backend] : backends.items()) where.push_back(component + " " + backend.get<std::string>());
  const int64_t peak = peak_rss();
  const std::string threads = machine["threads"].is_string() ? machine["threads"].get<std::string>() : machine["threads"].dump();
  print(options.common.json,
        {{"bundle", bundle.path().string()}, {"input", input}, {"rows", rows}, {"load_seconds", round.load_seconds}, {"peak_rss", peak},
         {"tokens", counts}, {"rounds", options.rounds}, {"backends", backends}, {"hardware", machine}},
        concat(bundle.path().string(), ": ", input, ", ", join(counted), "\n", machine["cpu"].get<std::string>(), ", ", machine["cores"].dump(),
               " cores, ", size_text(machine["memory"].get<double>()), " memory; threads: ", threads, "; ", join(where), "\n\n", table(lines),
               format("\n\nengines loaded in %.2f s, peak memory ", round.load_seconds), size_text(static_cast<double>(peak))));
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
