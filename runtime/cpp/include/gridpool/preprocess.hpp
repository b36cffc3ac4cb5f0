// Frames to what a bundle's graph takes (runtime/media/preprocess.py): `pixel_values`, bit for bit as Pillow and transformers' image
// processor make them, or, if the graph does that itself (`--input frames`), the frames as they are.
//
// T frames, h, w rows and columns of the model's input.
#pragma once

#include <array>
#include <vector>

#include "gridpool/bundle.hpp"
#include "gridpool/engine.hpp"
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

  /// RGB uint8 [any, any, 3] -> uint8 [h, w, 3]. A graph that takes frames of another size than the model's resizes them
  /// itself: VideoError for a frame that is not of that size.
  Image resize(const Image& frame) const;

  /// T frames that were resized -> float32 [T, 3, h, w], or uint8 [T, h, w, 3] if the graph takes frames.
  Tensor normalise(const std::vector<Image>& frames) const;

 private:
  Preprocessing settings_;
  bool takes_frames_;
  int height_, width_;  // of a frame that was resized
  std::array<std::array<float, 256>, 3> levels_;  // what each of a channel's 256 values becomes
};

}  // namespace gridpool
