// Video -> compressed visual tokens -> streamed answer.
//
// T frames, h, w pixels of a preprocessed frame, N visual tokens, D hidden.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gridpool/llm.hpp"
#include "gridpool/preprocess.hpp"
#include "gridpool/prompt.hpp"
#include "gridpool/video.hpp"

namespace gridpool {

using Seconds = std::vector<std::pair<std::string, double>>;  ///< by stage, in the order in which they ran

/// tokens [N, D] in the bundle's precision; clip: which frames they came from, without their pixels.
struct VisualTokens {
  Tensor tokens;
  Clip clip;
  Seconds seconds;
};

/// The vision encoder and compressor of a bundle on one engine. Not safe for two threads at once.
class GRIDPOOL_API VisionEncoder {
 public:
  static VisionEncoder open(const Bundle& bundle, const std::string& backend = "auto", const EngineOptions& options = {});
  VisionEncoder(const Bundle& bundle, std::unique_ptr<Engine> engine);

  /// Compressed tokens of a video file. VideoError for a file that can't be decoded, EngineError for a failed run.
  VisualTokens encode(const std::filesystem::path& video);

  /// pixel_values float32 [T, 3, h, w], or frames uint8 [T, h, w, 3] if the graph takes them -> visual tokens [N, D].
  Tensor tokens(const TensorView& frames);

  /// The visual tokens among a run's outputs; EngineError if there are none, NonFiniteError if one is not finite.
  static Tensor checked(std::map<std::string, Tensor> results);

  Engine& engine() { return *engine_; }
  const Preprocessor& preprocessor() const { return preprocessor_; }
  int64_t frames() const { return frames_; }

 private:
  std::unique_ptr<Engine> engine_;
  Preprocessor preprocessor_;
  int64_t frames_;
};

struct GRIDPOOL_API AskOptions {
  int64_t max_new_tokens = 128;  ///< the answer's length at most
  Sampling sampling;             ///< greedy by default

  /// PromptError for values that are out of range.
  void check() const;
};

/// The text and what it cost.
struct Answer {
  std::string text;
  std::vector<int64_t> ids;
  int64_t patch_tokens = 0, visual_tokens = 0, prompt_tokens = 0;
  std::vector<int64_t> frames;
  int64_t repeated_frames = 0;
  Seconds seconds;
};

/// A bundle ready to answer questions: both engines loaded. Not safe for two threads at once.
class GRIDPOOL_API VideoChat {
 public:
  /// Load vision and LLM, at the same time if they are large. The context is checked against the clip's tokens first.
  /// prompt: the bundle's, if the caller has it already, so that its tokenizer is not read again.
  static VideoChat open(Bundle bundle, const std::string& backend = "auto", const EngineOptions& options = {},
                        std::optional<Prompt> prompt = std::nullopt);

  /// Refuse a question or a file that can't be used, without loading weights; return the question's prompt.
  static PromptIds check(const Bundle& bundle, const Prompt& prompt, const std::filesystem::path& video, const std::string& question);

  /// The answer; `each` gets its text as it is made, in complete characters.
  Answer ask(const std::filesystem::path& video, const std::string& question,
             const std::function<void(std::string_view)>& each = {}, const AskOptions& options = {});

  /// The same for a clip that was encoded before.
  Answer ask_about(const VisualTokens& visual, const std::string& question,
                   const std::function<void(std::string_view)>& each = {}, const AskOptions& options = {});

  VisionEncoder& vision() { return vision_; }
  LocalDecoder& decoder() { return decoder_; }
  const Prompt& prompt() const { return prompt_; }
  const Bundle& bundle() const { return bundle_; }

 private:
  VideoChat(Bundle bundle, Prompt prompt, VisionEncoder vision, LocalDecoder decoder);
  Bundle bundle_;
  Prompt prompt_;
  VisionEncoder vision_;
  LocalDecoder decoder_;
};

}  // namespace gridpool
