// The vision graphs of a split bundle: an encoder that takes one frame, a compressor that takes the features of T. Together
// they are one engine with the inputs and outputs of vision.onnx; a stream, whose frames come one at a time, calls them one by one.
//
// T frames, h, w pixels, H, W patch rows and columns, C features of a patch, N visual tokens, D hidden.
#pragma once

#include <memory>

#include "gridpool/engine.hpp"

namespace gridpool {

class SplitVision : public Engine {
 public:
  SplitVision(std::unique_ptr<Engine> encoder, std::unique_ptr<Engine> compressor);

  std::unique_ptr<State> new_state(const std::map<std::string, std::string>& pairs) override;
  std::map<std::string, Tensor> run(const Feeds& feeds, State* state) override;

  /// One frame, [1, 3, h, w] -> features [1, H, W, C].
  Tensor encode(const TensorView& pixel_values);

  /// Features of T frames, [T, H, W, C] contiguous -> visual tokens [N, D].
  std::map<std::string, Tensor> compress(const void* features);

  /// [T, H, W, C], what the compressor takes.
  const TensorSpec& features() const { return compressor_->inputs()[0]; }

 private:
  std::unique_ptr<Engine> encoder_, compressor_;
};

}  // namespace gridpool
