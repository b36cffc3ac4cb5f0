// Regular expressions over UTF-8, by Oniguruma: the library that Hugging Face's tokenizers uses.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

struct re_pattern_buffer;

namespace gridpool {

class Pattern {
 public:
  /// std::invalid_argument for a pattern that does not compile.
  explicit Pattern(const std::string& pattern);

  /// [begin, end) of each match, left to right, none empty. std::invalid_argument for a text on which it takes too long.
  std::vector<std::pair<size_t, size_t>> matches(const std::string& text) const;

 private:
  std::shared_ptr<re_pattern_buffer> regex_;
};

}  // namespace gridpool
