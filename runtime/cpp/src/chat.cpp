#include "gridpool/chat.hpp"

#include <future>

#include "refusal.hpp"
#include "stopwatch.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

constexpr int64_t kLoadedAtOnce = 64 << 20;  // bytes of graphs and weights from which two threads load them

int64_t weight(const Bundle& bundle) {
  int64_t bytes = 0;
  for (const auto& [name, file] : bundle.manifest().files) bytes += file.size;
  return bytes;
}

}  // namespace

VisionEncoder VisionEncoder::open(const Bundle& bundle, const std::string& backend, const EngineOptions& options) {
  return VisionEncoder(bundle, open_engine(bundle, kVision, backend, options));
}

VisionEncoder::VisionEncoder(const Bundle& bundle, std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)),
      preprocessor_(bundle.preprocessing()),
      frames_(bundle.manifest().frames) {
  if (engine_->inputs().size() != 1) throw EngineError("the vision graph takes more than a clip; export the bundle again");
}

VisualTokens VisionEncoder::encode(const std::filesystem::path& video) {
  const Stopwatch decoding;
  Clip clip = sample_frames(video, frames_, [this](const Image& frame) { return preprocessor_.resize(frame); });
  const Tensor input = preprocessor_.normalise(clip.frames);
  clip.frames.clear();
  const double decoded = decoding.seconds();
  const Stopwatch encoding;
  Tensor visual = tokens(input.view());
  return {std::move(visual), std::move(clip), {{"decode+preprocess", decoded}, {"encode+compress", encoding.seconds()}}};
}

Tensor VisionEncoder::tokens(const TensorView& frames) {
  const TensorSpec& spec = engine_->inputs()[0];
  if (frames.dtype != DType::float32 || spec.dtype != DType::float16) return checked(engine_->run({{spec.name, frames}}));
  const Tensor rounded = cast(frames, spec.dtype);
  return checked(engine_->run({{spec.name, rounded.view()}}));
}

Tensor VisionEncoder::checked(std::map<std::string, Tensor> results) {
  const auto found = results.find("visual_tokens");
  if (found == results.end()) throw EngineError("the vision graph has no output visual_tokens; export the bundle again");
  check_finite(found->second.floats(), "the vision graph returned values");
  return std::move(found->second);
}

void AskOptions::check() const {
  if (max_new_tokens < 1) throw PromptError(concat("max_new_tokens is ", max_new_tokens, ", expected at least 1"));
  sampling.check();
}

VideoChat::VideoChat(Bundle bundle, Prompt prompt, VisionEncoder vision, LocalDecoder decoder)
    : bundle_(std::move(bundle)), prompt_(std::move(prompt)), vision_(std::move(vision)), decoder_(std::move(decoder)) {}

VideoChat VideoChat::open(Bundle bundle, const std::string& backend, const EngineOptions& asked, std::optional<Prompt> prompt) {
  bundle.file("llm/decoder.onnx");  // refused with how to get one
  check_context(bundle.manifest().tokens_per_clip + 1, bundle.manifest().max_context);
  const EngineOptions options = place(bundle, backend, asked).options;
  // At the same time if there is much to read: small graphs load sooner than the threads of the other engine stop spinning.
  // Deferred is also the fallback if no thread can be started.
  const auto load = weight(bundle) > kLoadedAtOnce ? std::launch::async | std::launch::deferred : std::launch::deferred;
  auto vision = std::async(load, [&] { return VisionEncoder::open(bundle, backend, options); });
  LocalDecoder decoder = LocalDecoder::open(bundle, backend, options);
  if (!prompt) prompt.emplace(bundle);
  VisionEncoder encoder = vision.get();
  return VideoChat(std::move(bundle), std::move(*prompt), std::move(encoder), std::move(decoder));
}

PromptIds VideoChat::check(const Bundle& bundle, const Prompt& prompt, const std::filesystem::path& video, const std::string& question) {
  PromptIds ids = prompt.ids(question);
  check_context(ids.size() + bundle.manifest().tokens_per_clip, bundle.manifest().max_context);
  check_video_file(video);
  return ids;
}

Answer VideoChat::ask(const std::filesystem::path& video, const std::string& question, const std::function<void(std::string_view)>& each,
                      const AskOptions& options) {
  check(bundle_, prompt_, video, question);
  return ask_about(vision_.encode(video), question, each, options);
}

Answer VideoChat::ask_about(const VisualTokens& visual, const std::string& question, const std::function<void(std::string_view)>& each,
                            const AskOptions& options) {
  options.check();
  const PromptIds ids = prompt_.ids(question);
  const Chooser choose = options.sampling.chooser(prompt_.seen(ids), prompt_.repetition_penalty());
  const Stopwatch prefilling;
  const Tensor embeddings = prompt_.embed(ids, visual.tokens.view());
  Conversation conversation = decoder_.conversation();
  std::vector<float> logits = conversation.extend(embeddings.view());
  const double prefill = prefilling.seconds();

  Answer answer;
  answer.patch_tokens = bundle_.manifest().patch_tokens();
  answer.visual_tokens = visual.tokens.shape[0];
  answer.prompt_tokens = embeddings.shape[1];
  answer.frames = visual.clip.indices;
  answer.repeated_frames = visual.clip.repeated();
  answer.seconds = visual.seconds;
  double first = prefill;
  for (const auto& [stage, seconds] : visual.seconds) first += seconds;
  answer.seconds.emplace_back("prefill", prefill);
  answer.seconds.emplace_back("time_to_first_token", first);

  const Stopwatch stopwatch;
  TextStream stream(prompt_.tokenizer());
  const auto emit = [&](const std::string& piece) {
    if (piece.empty()) return;
    answer.text += piece;
    if (each) each(piece);
  };
  double decoding = 0;
  conversation.generate(std::move(logits), [&](int64_t id) { return prompt_.embed(id); }, choose, prompt_.eos(), options.max_new_tokens,
                        [&](int64_t id) {
                          answer.ids.push_back(id);
                          decoding = stopwatch.seconds();
                          emit(stream.push(id));
                          return true;
                        });
  emit(stream.finish());
  if (!answer.ids.empty()) answer.seconds.emplace_back("decode", decoding);
  return answer;
}

}  // namespace gridpool
