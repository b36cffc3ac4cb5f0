// Tokens that are found in a text before anything else is done to it, such as "<|im_end|>".
#pragma once

#include <cstdint>
#include <map>
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

class AddedTokens {
 public:
  /// A token without content is never found.
  void add(AddedToken token);

  /// `text` cut at the tokens: leftmost first, of those the longest. literal: special tokens are left in the text.
  std::vector<Stretch> cut(const std::string& text, bool literal = false) const;

 private:
  const AddedToken* longest_at(const std::string& text, size_t at) const;
  std::vector<AddedToken> tokens_;
  std::map<char, std::vector<size_t>> by_first_;  // indices of the tokens that begin with a byte
};

}  // namespace gridpool
