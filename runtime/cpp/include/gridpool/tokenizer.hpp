// The checkpoint's tokenizer.json, run as Hugging Face's tokenizers runs it.
//
// What it covers: normalisers NFC, NFD, NFKC, NFKD, Lowercase; pre-tokenisers Split (any Oniguruma pattern), ByteLevel,
// Whitespace, WhitespaceSplit; models BPE and WordLevel; the ByteLevel decoder or none; sequences of these. That is
// Qwen2's tokenizer, GPT-2's and Llama 3's, and the demo's. Anything else is refused by name when the file is read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gridpool/error.hpp"

namespace gridpool {

class GRIDPOOL_API Tokenizer {
 public:
  /// Throws BundleError for a file that is not a tokenizer, or one of another kind.
  static Tokenizer from_file(const std::filesystem::path& file);
  static Tokenizer from_json(const std::string& json);

  Tokenizer(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of UTF-8 text, added tokens recognised, none added around it. PromptError for a word that has no id.
  /// literal: special tokens are read as plain text.
  std::vector<int64_t> encode(std::string_view text, bool literal = false) const;

  /// UTF-8 text of ids, special tokens left out; bytes that are not UTF-8 become U+FFFD.
  std::string decode(const std::vector<int64_t>& ids) const;

  /// The special tokens' texts, sorted.
  std::vector<std::string> special_tokens() const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<Parts> parts);
  static Tokenizer parsed(const std::string& json, const std::string& name);
  std::unique_ptr<Parts> parts_;
};

/// Ids in, finished text out: a character whose bytes span several tokens is held back until it is complete.
class GRIDPOOL_API TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::string push(int64_t id);  ///< the text that `id` completes, "" if none is complete yet
  std::string finish();          ///< what was held back when the answer ended

 private:
  std::string take(const std::string& text);
  const Tokenizer& tokenizer_;
  std::vector<int64_t> ids_;
  size_t sent_ = 0;  // bytes handed out
};

}  // namespace gridpool
