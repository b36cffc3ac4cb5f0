#include "gridpool/llm.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "refusal.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

/// {input name: output name} of all keys and values.
std::map<std::string, std::string> cache_pairs(const Engine& engine, int64_t layers) {
  const std::string past = "past_key_values.", present = "present.";
  std::map<std::string, std::string> pairs;
  std::set<std::string> wanted, found;
  for (const auto& spec : engine.inputs()) {
    if (spec.name.rfind(past, 0) == 0) wanted.insert(pairs[spec.name] = present + spec.name.substr(past.size()));
  }
  for (const auto& spec : engine.outputs()) {
    if (spec.name.rfind(present, 0) == 0) found.insert(spec.name);
  }
  if (wanted != found || static_cast<int64_t>(found.size()) != 2 * layers) {  // a key and a value
    throw malformed(concat("the decoder graph lacks the caches of the manifest's ", layers, " layers"));
  }
  return pairs;
}

}  // namespace

int64_t prefill_chunk(const std::string& device, const std::string& attention) {
  if (device != "cuda") return kPrefillChunk;
  return attention == "flash" ? kFlashPrefillChunk : kGpuPrefillChunk;
}

LocalDecoder LocalDecoder::open(const Bundle& bundle, const std::string& backend, const EngineOptions& options) {
  return LocalDecoder(bundle, open_engine(bundle, kDecoder, backend, options));
}

LocalDecoder::LocalDecoder(const Bundle& bundle, std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)),
      max_context_(bundle.manifest().max_context),
      chunk_(prefill_chunk(engine_->device(), bundle.manifest().attention)),
      cache_pairs_(cache_pairs(*engine_, bundle.manifest().layers)) {
  for (const auto& spec : engine_->inputs()) {
    if (spec.name == "inputs_embeds") dtype_ = spec.dtype;
  }
}

Conversation LocalDecoder::conversation() { return Conversation(*this, engine_->new_state(cache_pairs_)); }

std::vector<float> Conversation::extend(const TensorView& embeddings, int64_t chunk) {
  if (chunk == 0) chunk = decoder_.chunk();
  const int64_t count = embeddings.shape.at(1), hidden = embeddings.shape.at(2);
  check_context(length_ + count, decoder_.max_context());
  std::vector<float> logits;
  for (int64_t start = 0; start < count; start += chunk) {
    const auto* from = static_cast<const std::byte*>(embeddings.data) + static_cast<size_t>(start * hidden) * size_of(embeddings.dtype);
    logits = step({embeddings.dtype, {1, std::min(chunk, count - start), hidden}, from});
  }
  check_finite(logits, "the decoder returned logits");
  return logits;
}

std::vector<float> Conversation::step(const TensorView& embeddings) {
  const int64_t count = embeddings.shape[1], end = length_ + count;
  std::vector<int64_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), length_);
  if (ones_.size() < static_cast<size_t>(end)) ones_.resize(static_cast<size_t>(std::max(end, decoder_.max_context())), 1);
  Tensor converted;
  TensorView rows = embeddings;
  if (rows.dtype != decoder_.dtype()) converted = cast(embeddings, decoder_.dtype()), rows = converted.view();
  auto results = decoder_.engine().run({{"inputs_embeds", rows},
                                        {"position_ids", {DType::int64, {1, count}, positions.data()}},
                                        {"attention_mask", {DType::int64, {1, end}, ones_.data()}}},
                                       state_.get());
  const auto logits = results.find("logits");
  if (logits == results.end()) throw EngineError("the decoder has no output logits; export the bundle again");
  length_ = end;
  std::vector<float> values = logits->second.floats();
  const auto width = static_cast<size_t>(logits->second.shape.back());
  if (values.size() > width) values.erase(values.begin(), values.end() - static_cast<std::ptrdiff_t>(width));
  return values;
}

void Conversation::generate(std::vector<float> logits, const std::function<Tensor(int64_t)>& embed, const Chooser& choose,
                            const std::set<int64_t>& eos, int64_t limit, const std::function<bool(int64_t)>& each) {
  for (int64_t produced = 0; produced < limit; ++produced) {
    const int64_t id = choose(logits);
    if (eos.count(id) || !each(id)) return;
    if (produced + 1 == limit || length_ == decoder_.max_context()) return;
    logits = extend(embed(id).view());
  }
}

void check_context(int64_t needed, int64_t max_context) {
  if (needed > max_context) {
    throw ContextError(concat("the prompt needs ", needed, " positions, the bundle has ", max_context,
                             "; ask a shorter question, or export with a larger --max-context or stronger --compress"));
  }
}

}  // namespace gridpool
