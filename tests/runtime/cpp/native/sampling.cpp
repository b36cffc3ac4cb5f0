// Sampling: seeds decide, and frequencies are those of the distribution.
#include <gridpool/gridpool.hpp>
#include <gtest/gtest.h>

#include <cmath>

#include "message_of.hpp"

using namespace gridpool;

namespace {

std::vector<int64_t> drawn(const Sampling& sampling, const std::vector<float>& logits, int count) {
  const Chooser choose = sampling.chooser();
  std::vector<int64_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back(choose(logits));
  return ids;
}

TEST(Sampling, ValuesOutOfRangeAreRefused) {
  for (const Sampling& wrong : {Sampling{-1, 1, {}}, Sampling{101, 1, {}}, Sampling{std::nan(""), 1, {}}}) {
    EXPECT_NE(message_of<PromptError>([&] { wrong.chooser(); }).find("temperature is"), std::string::npos);
  }
  for (const double top_p : {0.0, 1.5, std::nan("")}) {
    EXPECT_NE(message_of<PromptError>([&] { Sampling{1, top_p, {}}.check(); }).find("top_p is"), std::string::npos);
  }
  EXPECT_NE(message_of<PromptError>([] { AskOptions{0, {}}.check(); }).find("max_new_tokens is 0"), std::string::npos);
}

TEST(Sampling, GreedyTakesTheFirstOfTheLargest) { EXPECT_EQ(Sampling{}.chooser()({1, 3, 3, 2}), 1); }

TEST(Sampling, EqualSeedsDrawTheSameOnEveryPlatform) {
  // std::mt19937_64's first outputs for seed 5489 are in the standard's tables: 14514284786278117030, 4620546740167642908, …
  // The top 53 bits of these over 2^53 are 0.7868, 0.2505; with equal weights, ids are floor(4 u).
  const std::vector<float> equal(4, 0.0f);
  EXPECT_EQ(drawn({1, 1, 5489}, equal, 2), (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(drawn({1, 1, 7}, equal, 100), drawn({1, 1, 7}, equal, 100));
  EXPECT_NE(drawn({1, 1, 7}, equal, 100), drawn({1, 1, 8}, equal, 100));
  EXPECT_NE(drawn({1, 1, {}}, equal, 100), drawn({1, 1, {}}, equal, 100));
}

TEST(Sampling, FrequenciesAreThoseOfTheSoftmax) {
  const std::vector<float> logits = {2, 1, 0, -1, 4};
  constexpr int kDraws = 40000;
  for (const double temperature : {0.7, 1.0, 3.0}) {
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit / temperature);
    std::vector<int> counts(logits.size());
    for (const int64_t id : drawn({temperature, 1, 1}, logits, kDraws)) ++counts[static_cast<size_t>(id)];
    for (size_t id = 0; id < logits.size(); ++id) {
      const double p = std::exp(logits[id] / temperature) / sum, deviation = std::sqrt(kDraws * p * (1 - p));
      EXPECT_NEAR(counts[id], kDraws * p, 4 * deviation) << "temperature " << temperature << ", id " << id;
    }
  }
}

TEST(Sampling, NothingOutsideTheNucleusIsDrawn) {
  const std::vector<float> logits = {0, std::log(6.0f), std::log(3.0f)};  // 0.1, 0.6, 0.3
  std::vector<int> counts(3);
  for (const int64_t id : drawn({1, 0.7, 1}, logits, 20000)) ++counts[static_cast<size_t>(id)];
  EXPECT_EQ(counts[0], 0);
  EXPECT_NEAR(counts[1], 20000 * 2 / 3.0, 4 * std::sqrt(20000 * 2 / 9.0));
}

}  // namespace
