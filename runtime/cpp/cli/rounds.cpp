#include "rounds.hpp"

#include <chrono>

extern "C" {
#include <libavutil/base64.h>
}

#include "files.hpp"
#include "hardware.hpp"
#include "json.hpp"
#include "npy.hpp"
#include "stopwatch.hpp"

namespace gridpool::cli {
namespace {

constexpr const char* kQuestion = "What happens in the video?";

/// The bundle's reference clip as its graph takes it: Polygraphy's JSON stores an array as the base64 of a .npy file.
std::string reference_npy(const Bundle& bundle) {
  const auto path = bundle.file("reference/inputs.json");
  Json feeds;
  std::string reason;
  if (parse_json(read_file(path), feeds, reason) && feeds.is_array() && feeds.size() == 1 && feeds[0].size() == 1) {
    const Json& array = member(feeds[0].front(), "array");
    if (array.is_string()) {
      const std::string& text = array.get_ref<const std::string&>();
      std::string bytes(AV_BASE64_DECODE_SIZE(text.size()), '\0');
      const int size = av_base64_decode(reinterpret_cast<uint8_t*>(bytes.data()), text.c_str(), static_cast<int>(bytes.size()));
      if (size > 0) return bytes.substr(0, static_cast<size_t>(size));
    }
  }
  throw BundleError(path.string() + " is not a list of one feed with one input; export the bundle again");
}

}  // namespace

Rounds::Rounds(const CommonOptions& options, const Bundle& bundle, const EngineOptions& engine, const std::string& video, int64_t new_tokens)
    : bundle_(bundle), new_tokens_(new_tokens), video_(video) {
  const bool has_vision = bundle.manifest().has_file("vision.onnx");
  if (has_vision && video_.empty()) {
    npy_ = reference_npy(bundle);
    pixels_ = npy_view(npy_);
  }
  reset_peak();
  const Stopwatch loading;
  if (has_vision) vision_.emplace(VisionEncoder::open(bundle, options.backend, engine));
  if (bundle.has_llm()) decoder_.emplace(LocalDecoder::open(bundle, options.backend, engine));
  load_seconds = loading.seconds();
  if (vision_) counts = {{"patch_tokens", bundle.manifest().patch_tokens()}, {"visual_tokens", bundle.manifest().tokens_per_clip}};
  if (!decoder_) return;
  prompt_.emplace(bundle);
  ids_ = prompt_->ids(kQuestion);
  if (!vision_) stand_in_ = read_file(bundle.file("reference/llm_visual_tokens.npy"));  // instead of a clip's tokens
  const int64_t visual = vision_ ? bundle.manifest().tokens_per_clip : npy_view(stand_in_).shape.at(0);
  check_context(ids_.size() + visual + new_tokens, decoder_->max_context());
  counts.emplace_back("prompt_tokens", ids_.size() + visual);
  counts.emplace_back("new_tokens", new_tokens);
}

Seconds Rounds::operator()() {
  Seconds stages;
  Tensor visual;
  if (vision_) visual = see(stages);
  if (decoder_) answer(vision_ ? visual.view() : npy_view(stand_in_), stages);
  return stages;
}

OrderedJson Rounds::backends() {
  const auto where = [](const Engine& engine) { return engine.backend() + " on " + engine.device(); };
  OrderedJson names = OrderedJson::object();
  if (vision_) names["vision"] = where(vision_->engine());
  if (decoder_) names["llm"] = where(decoder_->engine());
  return names;
}

Tensor Rounds::see(Seconds& stages) {
  Tensor input;
  TensorView pixels = pixels_;
  if (!video_.empty()) {
    const Preprocessor& preprocessor = vision_->preprocessor();
    double resizing = 0;
    const Stopwatch decoding;
    const Clip clip = sample_frames(video_, vision_->frames(), [&](const Image& frame) {
      const Stopwatch one;
      Image resized = preprocessor.resize(frame);
      resizing += one.seconds();
      return resized;
    });
    stages.emplace_back("decode", decoding.seconds() - resizing);
    const Stopwatch normalising;
    input = preprocessor.normalise(clip.frames);
    stages.emplace_back("preprocess", normalising.seconds() + resizing);
    pixels = input.view();
  }
  const Stopwatch encoding;
  Tensor tokens = vision_->tokens(pixels);
  stages.emplace_back("encode+compress", encoding.seconds());
  return tokens;
}

void Rounds::answer(const TensorView& visual, Seconds& stages) {
  const Stopwatch prefill;
  Conversation conversation = decoder_->conversation();
  std::vector<float> logits = conversation.extend(prompt_->embed(ids_, visual).view());
  stages.emplace_back("prefill", prefill.seconds());
  if (vision_) {
    double sum = 0;
    for (const auto& [stage, seconds] : stages) sum += seconds;
    stages.emplace_back("time to first token", sum);
  }
  const Stopwatch decoding;
  const Chooser choose = Sampling{}.chooser();
  for (int64_t i = 0; i < new_tokens_; ++i) logits = conversation.extend(prompt_->embed(choose(logits)).view());
  stages.emplace_back("decode rate", static_cast<double>(new_tokens_) / decoding.seconds());
}

}  // namespace gridpool::cli
