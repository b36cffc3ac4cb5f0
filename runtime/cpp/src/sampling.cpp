// Choosing the next token: greedy, or temperature and nucleus sampling.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "gridpool/llm.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

constexpr double kGreedyBelow = 1e-5;  // the quotients of logits by lower temperatures may not be finite

/// Logits of `seen` divided by `penalty` if they are positive, multiplied if they are negative (Keskar et al. 2019,
/// as transformers' RepetitionPenaltyLogitsProcessor computes it).
std::vector<float> penalized(std::vector<float> logits, const std::set<int64_t>& seen, float penalty) {
  for (const int64_t id : seen) {
    if (id < 0 || id >= static_cast<int64_t>(logits.size())) continue;
    float& value = logits[static_cast<size_t>(id)];
    value = value < 0 ? value * penalty : value / penalty;
  }
  return logits;
}

}  // namespace

void Sampling::check() const {
  if (!(temperature >= 0 && temperature <= 100)) throw PromptError(concat("temperature is ", temperature, ", expected 0 (greedy) to 100"));
  if (!(top_p > 0 && top_p <= 1)) throw PromptError(concat("top_p is ", top_p, ", expected more than 0 and at most 1"));
}

Chooser Sampling::chooser(std::set<int64_t> seen, double penalty) const {
  if (penalty != 1) {
    return [choose = chooser(), seen = std::move(seen), factor = static_cast<float>(penalty)](const std::vector<float>& logits) mutable {
      const int64_t id = choose(penalized(logits, seen, factor));
      seen.insert(id);
      return id;
    };
  }
  check();
  if (temperature < kGreedyBelow) {
    return [](const std::vector<float>& logits) { return std::max_element(logits.begin(), logits.end()) - logits.begin(); };
  }
  std::random_device entropy;
  std::mt19937_64 generator(seed ? *seed : uint64_t{entropy()} << 32 | entropy());
  return [sampling = *this, generator](const std::vector<float>& logits) mutable {
    std::vector<double> cumulative = sampling.probabilities(logits);
    std::partial_sum(cumulative.begin(), cumulative.end(), cumulative.begin());
    const double all = cumulative.back();
    for (double& value : cumulative) value /= all;  // the last is then 1, which no draw reaches
    // In [0, 1). The standard fixes the bits of this generator, but not those of its distributions.
    const double uniform = static_cast<double>(generator() >> 11) * 0x1p-53;
    return std::upper_bound(cumulative.begin(), cumulative.end(), uniform) - cumulative.begin();
  };
}

std::vector<double> Sampling::probabilities(const std::vector<float>& logits) const {
  std::vector<double> weights(logits.begin(), logits.end());
  for (double& value : weights) value /= temperature;
  const double highest = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& value : weights) sum += value = std::exp(value - highest);
  for (double& value : weights) value /= sum;
  if (top_p >= 1) return weights;
  std::vector<size_t> order(weights.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return weights[a] > weights[b]; });
  double before = 0, kept = 0;  // probability of the tokens before this one, and of the nucleus
  for (const size_t token : order) {
    const double weight = weights[token];
    if (before >= top_p) weights[token] = 0;
    before += weight;
    kept += weights[token];
  }
  for (double& value : weights) value /= kept;
  return weights;
}

}  // namespace gridpool
