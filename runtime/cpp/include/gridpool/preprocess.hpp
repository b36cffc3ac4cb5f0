// Frames to `pixel_values`, bit for bit as Pillow and transformers' image processor make them (runtime/preprocess.py).
//
// T frames, h, w rows and columns of the model's input.
#pragma once

#include <array>
#include <vector>

#include "gridpool/bundle.hpp"
#include "gridpool/video.hpp"

namespace gridpool {

/// Pillow's filters, with Pillow's numbers.
enum class Resample { nearest, lanczos, bilinear, bicubic, box, hamming };

/// Pillow's resize of an RGB image: two passes of fixed-point weights, each rounded to 8 bits.
GRIDPOOL_API Image resize(const Image& image, int height, int width, Resample filter);

/// The image processor that a manifest's `preprocessing` describes.
class GRIDPOOL_API Preprocessor {
 public:
  explicit Preprocessor(const Preprocessing& settings);

  /// RGB uint8 [any, any, 3] -> uint8 [h, w, 3].
  Image resize(const Image& frame) const;

  /// T frames uint8 [h, w, 3] -> float32 [T, 3, h, w].
  std::vector<float> normalise(const std::vector<Image>& frames) const;

 private:
  Preprocessing settings_;
  std::array<std::array<float, 256>, 3> levels_;  // what each of a channel's 256 values becomes
};

}  // namespace gridpool
