// What `gridpool bench` times: one answer after the other, stage by stage.
#pragma once

#include <optional>

#include "options.hpp"
#include "output.hpp"

namespace gridpool::cli {

class Rounds {
 public:
  /// Loads the engines. video: "" for the bundle's reference input. ContextError for a prompt that exceeds the context.
  Rounds(const CommonOptions& options, const Bundle& bundle, const EngineOptions& engine, const std::string& video, int64_t new_tokens);

  /// Answers once. Seconds by stage; the decode rate is in tokens a second.
  Seconds operator()();

  /// {component: "backend on device"}
  OrderedJson backends();

  double load_seconds = 0;
  std::vector<std::pair<std::string, int64_t>> counts;  ///< tokens of each kind

 private:
  Tensor see(Seconds& stages);
  void answer(const TensorView& visual, Seconds& stages);

  const Bundle& bundle_;
  int64_t new_tokens_;
  std::string video_, npy_, stand_in_;
  TensorView pixels_;
  std::optional<VisionEncoder> vision_;
  std::optional<LocalDecoder> decoder_;
  std::optional<Prompt> prompt_;
  PromptIds ids_;
};

}  // namespace gridpool::cli
