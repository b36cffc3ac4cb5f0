// Tokens that are found in a text before anything else is done to it, such as "<|im_end|>".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace gridpool {

struct AddedToken {
  int64_t id = 0;
  std::string content;
  bool special = false, normalized = false, single_word = false, lstrip = false, rstrip = false;
};

/// A stretch of text, or the token that stood there.
struct Stretch {
  std::string text;
  std::optional<int64_t> id;
};

/// `text` cut at `tokens`: leftmost first, of those the longest. literal: special tokens are left in the text.
std::vector<Stretch> cut_at(const std::vector<AddedToken>& tokens, const std::string& text, bool literal);

}  // namespace gridpool
