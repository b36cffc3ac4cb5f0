// Byte-pair merges over a vocabulary: of all adjacent pairs the one that was learnt first is merged first.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "json.hpp"

namespace gridpool {

using Vocabulary = std::unordered_map<std::string, int64_t>;

class Bpe {
 public:
  /// model: tokenizer.json's "model"; vocabulary: that of the same file. std::invalid_argument for settings that are not supported.
  Bpe(const Json& model, const Vocabulary& vocabulary);

  /// Append the ids of one word.
  void encode(const std::string& word, const Vocabulary& vocabulary, std::vector<int64_t>& ids) const;

 private:
  struct Merge {
    uint32_t rank;
    int64_t id;
  };
  std::unordered_map<uint64_t, Merge> merges_;  // by both ids
  int64_t unknown_ = -1;
  bool ignore_merges_ = false;
};

}  // namespace gridpool
