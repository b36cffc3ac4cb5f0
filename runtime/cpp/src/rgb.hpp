// Decoded frames as RGB: those of a video with the numbers of FFmpeg's command line (bicubic chroma) and fields of interlaced
// frames apart, still pictures with chroma interpolated linearly, as the libraries that Pillow uses do it.
#pragma once

#include <array>

#include "container.hpp"

namespace gridpool {

/// Turns frames into upright RGB; keeps its scalers from frame to frame.
class RgbConverter {
 public:
  /// For the frames of a container. The orientation of a still picture's file overrides the display matrices of FFmpeg, and that of
  /// a frame its stream's.
  explicit RgbConverter(const Container& container) : container_(container) {}

  /// VideoError for a colour space that FFmpeg can't convert.
  Image convert(const AVFrame& frame);

 private:
  struct ScalerDeleter {
    void operator()(SwsContext* scaler) const { sws_freeContext(scaler); }
  };
  using Layout = std::array<int, 6>;  // what a scaler is made for
  struct Scaler {
    std::unique_ptr<SwsContext, ScalerDeleter> context;
    Layout layout{};
  };

  enum Part { full_frame, top_field, bottom_field, chroma };
  static int rows_of(const AVFrame& frame, Part part);
  SwsContext& scaler(const AVFrame& frame, Part part);
  void scale(const AVFrame& frame, Part part, AVFrame& result);
  Image converted(const AVFrame& frame);
  Orientation orientation(const AVFrame& frame) const;

  const Container& container_;
  std::array<Scaler, 4> scalers_;  // one for each Part
};

}  // namespace gridpool
