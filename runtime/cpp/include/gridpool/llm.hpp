// The LLM of a bundle: prefill in chunks, decode token by token, KV cache updated in place.
//
// S prompt positions, P positions read, D hidden, V vocabulary.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "gridpool/engine.hpp"

namespace gridpool {

/// Positions per run of the prefill, which bounds the score matrix to heads x chunk x P; as in runtime/llm/decoder.py.
/// Flash attention stores no scores.
inline constexpr int64_t kPrefillChunk = 256, kGpuPrefillChunk = 1024, kFlashPrefillChunk = 8192;

/// Positions per run of the prefill on `device`, of a decoder with `attention` (the manifest's).
GRIDPOOL_API int64_t prefill_chunk(const std::string& device, const std::string& attention);

using Chooser = std::function<int64_t(const std::vector<float>&)>;  ///< logits [V] -> id

/// How the next token is chosen.
struct GRIDPOOL_API Sampling {
  double temperature = 0;         ///< 0 is greedy
  double top_p = 1;               ///< in (0, 1]: the smallest set of tokens with at least that much probability
  std::optional<uint64_t> seed;   ///< equal seeds give equal answers in this runtime; the Python runtime draws others

  /// PromptError for values that are out of range.
  void check() const;

  /// A function with its generator and the ids chosen so far; PromptError for values that are out of range.
  /// seen: ids of the prompt; penalty: the repetition penalty on them and on the ids that are chosen, 1 for none.
  Chooser chooser(std::set<int64_t> seen = {}, double penalty = 1) const;

  /// [V], sums to 1, zero outside the nucleus.
  std::vector<double> probabilities(const std::vector<float>& logits) const;
};

class Conversation;

/// One loaded decoder graph; each `Conversation` has its cache. Not safe for two threads at once.
class GRIDPOOL_API LocalDecoder {
 public:
  static LocalDecoder open(const Bundle& bundle, const std::string& backend = "auto", const EngineOptions& options = {});
  LocalDecoder(const Bundle& bundle, std::unique_ptr<Engine> engine);

  Conversation conversation();
  Engine& engine() { return *engine_; }
  int64_t max_context() const { return max_context_; }
  int64_t chunk() const { return chunk_; }
  DType dtype() const { return dtype_; }

 private:
  std::unique_ptr<Engine> engine_;
  int64_t max_context_;
  int64_t chunk_;
  DType dtype_ = DType::float32;
  std::map<std::string, std::string> cache_pairs_;
};

/// A KV cache and how far it is filled. It must not outlive its decoder.
class GRIDPOOL_API Conversation {
 public:
  Conversation(LocalDecoder& decoder, std::unique_ptr<State> state) : decoder_(decoder), state_(std::move(state)) {}

  /// Append embeddings [1, S, D]; return the logits [V] after the last of them.
  /// ContextError if the cache is too small, NonFiniteError for logits that are not finite.
  std::vector<float> extend(const TensorView& embeddings, int64_t chunk = 0);  // 0: the decoder's

  /// Call `each` with up to `limit` ids, the first chosen from `logits`, until one is in `eos` (not passed on), or the cache is
  /// full, or `each` returns false. embed: id -> embedding [1, 1, D].
  void generate(std::vector<float> logits, const std::function<Tensor(int64_t)>& embed, const Chooser& choose,
                const std::set<int64_t>& eos, int64_t limit, const std::function<bool(int64_t)>& each);

  int64_t length() const { return length_; }

 private:
  std::vector<float> step(const TensorView& embeddings);
  LocalDecoder& decoder_;
  std::unique_ptr<State> state_;
  std::vector<int64_t> ones_;
  int64_t length_ = 0;
};

/// ContextError for a prompt that exceeds the cache.
GRIDPOOL_API void check_context(int64_t needed, int64_t max_context);

}  // namespace gridpool
