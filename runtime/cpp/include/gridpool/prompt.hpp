// The prompt of a question about a clip: chat template, tokenizer, and where the visual tokens are spliced in.
//
// D hidden, N visual tokens, S prompt positions, V vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gridpool/engine.hpp"
#include "gridpool/tokenizer.hpp"

namespace gridpool {

/// Token ids before and after the visual tokens.
struct PromptIds {
  std::vector<int64_t> before, after;
  int64_t size() const { return static_cast<int64_t>(before.size() + after.size()); }
};

/// Text in and out of one bundle's LLM.
class GRIDPOOL_API Prompt {
 public:
  explicit Prompt(const Bundle& bundle);
  Prompt(Prompt&&) noexcept;
  ~Prompt();

  /// Ids of the chat-template prompt around one clip; special tokens in the question are read as plain text. PromptError for an
  /// empty question, and for a special token that the tokenizer can't read as text.
  PromptIds ids(const std::string& question) const;

  /// [1, S, D] in the embeddings' dtype: the prompt's rows with the visual tokens [N, D] in their place.
  Tensor embed(const PromptIds& ids, const TensorView& visual_tokens) const;

  /// [1, 1, D]: the row of one id.
  Tensor embed(int64_t id) const;

  const Tokenizer& tokenizer() const;
  const std::set<int64_t>& eos() const;
  /// On the ids of the prompt and of the answer so far; 1 for none.
  double repetition_penalty() const;
  /// Ids of a prompt around one clip, that of the video token included: what a repetition penalty counts.
  std::set<int64_t> seen(const PromptIds& ids) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace gridpool
