#include "split.hpp"

#include <algorithm>
#include <cstring>

#include "refusal.hpp"

namespace gridpool {
namespace {

std::vector<int64_t> sizes_of(const TensorSpec& spec) {
  std::vector<int64_t> sizes;
  for (const auto& dimension : spec.shape) sizes.push_back(dimension.size);
  return sizes;
}

}  // namespace

SplitVision::SplitVision(std::unique_ptr<Engine> encoder, std::unique_ptr<Engine> compressor)
    : Engine(encoder->backend(), encoder->device()), encoder_(std::move(encoder)), compressor_(std::move(compressor)) {
  const bool single = encoder_->inputs().size() == 1 && encoder_->outputs().size() == 1 && compressor_->inputs().size() == 1;
  if (!single) throw malformed("encoder and compressor are not a chain of single tensors");
  std::vector<int64_t> output = sizes_of(encoder_->outputs()[0]), input = sizes_of(features());
  const bool fixed = !input.empty() && std::all_of(input.begin(), input.end(), [](int64_t size) { return size > 0; });
  const int64_t frames = fixed ? input[0] : 0;
  if (fixed) input[0] = 1;
  if (!fixed || output != input || encoder_->outputs()[0].dtype != features().dtype) {
    throw malformed("the encoder's features are not those that the compressor takes");
  }
  inputs_ = encoder_->inputs();
  inputs_[0].shape.at(0) = {frames, ""};
  outputs_ = compressor_->outputs();
}

std::unique_ptr<State> SplitVision::new_state(const std::map<std::string, std::string>&) {
  throw EngineError("the vision graphs keep no state");
}

Tensor SplitVision::encode(const TensorView& pixel_values) {
  auto results = encoder_->run({{encoder_->inputs()[0].name, pixel_values}});
  return std::move(results.at(encoder_->outputs()[0].name));
}

std::map<std::string, Tensor> SplitVision::compress(const void* rows) {
  return compressor_->run({{features().name, {features().dtype, sizes_of(features()), rows}}});
}

std::map<std::string, Tensor> SplitVision::run(const Feeds& feeds, State*) {
  check_feeds(inputs_, feeds);
  const TensorView& frames = feeds[0].second;
  TensorView frame = frames;
  frame.shape[0] = 1;
  const size_t bytes = static_cast<size_t>(frame.count()) * size_of(frame.dtype);
  std::vector<std::byte> rows;
  for (int64_t i = 0; i < frames.shape[0]; ++i) {
    frame.data = static_cast<const std::byte*>(frames.data) + static_cast<size_t>(i) * bytes;
    const Tensor row = encode(frame);
    rows.insert(rows.end(), row.data.begin(), row.data.end());
  }
  return compress(rows.data());
}

}  // namespace gridpool
