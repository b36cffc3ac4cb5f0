// Choosing the next token: greedy, or temperature and nucleus sampling. The generator is NumPy's default_rng (PCG64 of
// O'Neill, seeded through SeedSequence), so that a seed gives the same answer as in the Python runtime.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>

#include "gridpool/llm.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

/// NumPy's SeedSequence: entropy mixed into a pool of four words, from which a state is hashed.
class SeedSequence {
 public:
  explicit SeedSequence(const std::vector<uint32_t>& entropy) {
    uint32_t constant = 0x43b0d7e5;
    const auto hash = [&](uint32_t value) {
      value ^= constant;
      constant *= 0x931e8875;
      value *= constant;
      return value ^ value >> 16;
    };
    for (size_t i = 0; i < pool_.size(); ++i) pool_[i] = hash(i < entropy.size() ? entropy[i] : 0);
    for (size_t source = 0; source < pool_.size(); ++source) {
      for (size_t goal = 0; goal < pool_.size(); ++goal) {
        if (source != goal) pool_[goal] = mixed(pool_[goal], hash(pool_[source]));
      }
    }
    for (size_t i = pool_.size(); i < entropy.size(); ++i) {
      for (uint32_t& word : pool_) word = mixed(word, hash(entropy[i]));
    }
  }

  std::array<uint64_t, 4> state() const {
    std::array<uint32_t, 8> words{};
    uint32_t constant = 0x8b51f9dd;
    for (size_t i = 0; i < words.size(); ++i) {
      uint32_t value = pool_[i % pool_.size()] ^ constant;
      constant *= 0x58f38ded;
      value *= constant;
      words[i] = value ^ value >> 16;
    }
    std::array<uint64_t, 4> result{};
    for (size_t i = 0; i < result.size(); ++i) result[i] = words[2 * i] | static_cast<uint64_t>(words[2 * i + 1]) << 32;
    return result;
  }

 private:
  static uint32_t mixed(uint32_t x, uint32_t y) {
    const uint32_t result = 0xca01f9dd * x - 0x4973f715 * y;
    return result ^ result >> 16;
  }
  std::array<uint32_t, 4> pool_{};
};

/// PCG64, XSL-RR: a 128-bit linear congruential generator whose halves are folded and rotated.
class Pcg64 {
 public:
  explicit Pcg64(const SeedSequence& seed) {
    const auto words = seed.state();
    increment_ = (wide(words[2], words[3]) << 1) | 1;
    step();
    state_ += wide(words[0], words[1]);
    step();
  }

  /// In [0, 1), a multiple of 2^-53.
  double uniform() {
    step();
    const auto folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
    const auto turn = static_cast<unsigned>(state_ >> 122);
    return static_cast<double>((folded >> turn | folded << (-turn & 63)) >> 11) * 0x1p-53;
  }

 private:
  using Wide = unsigned __int128;
  static Wide wide(uint64_t high, uint64_t low) { return static_cast<Wide>(high) << 64 | low; }
  void step() { state_ = state_ * wide(0x2360ed051fc65da4, 0x4385df649fccf645) + increment_; }
  Wide state_ = 0, increment_ = 0;
};

std::vector<uint32_t> entropy_of(const std::optional<uint64_t>& seed) {
  if (!seed) {
    std::random_device device;
    return {device(), device(), device(), device()};
  }
  std::vector<uint32_t> words = {static_cast<uint32_t>(*seed)};
  if (*seed >> 32) words.push_back(static_cast<uint32_t>(*seed >> 32));
  return words;
}

std::string number(double value) {  // as Python spells a float
  std::string text = format("%.15g", value);
  if (std::strtod(text.c_str(), nullptr) != value) text = format("%.17g", value);
  if (std::isfinite(value) && text.find_first_of(".e") == text.npos) text += ".0";
  return text;
}

constexpr double kGreedyBelow = 1e-5;  // the quotients of logits by lower temperatures may not be finite

/// Logits of `seen` divided by `penalty` where they are positive, multiplied where they are negative (Keskar et al. 2019,
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

Chooser Sampling::chooser(std::set<int64_t> seen, double penalty) const {
  if (penalty != 1) {
    return [choose = chooser(), seen = std::move(seen), factor = static_cast<float>(penalty)](const std::vector<float>& logits) mutable {
      const int64_t id = choose(penalized(logits, seen, factor));
      seen.insert(id);
      return id;
    };
  }
  if (!(temperature >= 0 && temperature <= 100)) throw PromptError("temperature is " + number(temperature) + ", expected 0 (greedy) to 100");
  if (!(top_p > 0 && top_p <= 1)) throw PromptError("top_p is " + number(top_p) + ", expected more than 0 and at most 1");
  if (temperature < kGreedyBelow) {
    return [](const std::vector<float>& logits) { return std::max_element(logits.begin(), logits.end()) - logits.begin(); };
  }
  return [sampling = *this, generator = Pcg64(SeedSequence(entropy_of(seed)))](const std::vector<float>& logits) mutable {
    std::vector<double> cumulative = sampling.probabilities(logits);
    std::partial_sum(cumulative.begin(), cumulative.end(), cumulative.begin());
    const double all = cumulative.back();
    for (double& value : cumulative) value /= all;
    const auto at = std::upper_bound(cumulative.begin(), cumulative.end(), generator.uniform());
    return std::min<int64_t>(at - cumulative.begin(), static_cast<int64_t>(cumulative.size()) - 1);
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
  double before = 0, kept = 0;  // mass ahead of each token
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
