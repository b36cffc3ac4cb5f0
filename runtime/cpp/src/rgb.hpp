// Decoded frames as RGB, with the numbers of FFmpeg's own command line (bicubic chroma), fields of interlaced frames apart.
#pragma once

#include <array>
#include <optional>

#include "av.hpp"
#include "orientation.hpp"

namespace gridpool {

/// Turns frames into upright RGB; keeps its scalers from frame to frame.
class RgbConverter {
 public:
  /// stream: its display matrix applies to frames that have none of their own.
  /// still: the orientation of a still picture's file, instead of any matrix.
  explicit RgbConverter(const AVStream& stream, std::optional<Orientation> still = std::nullopt) : stream_(stream), still_(still) {}

  /// AvFailure for a frame that swscale can't convert.
  Image convert(const AVFrame& frame);

 private:
  struct ScalerDeleter {
    void operator()(SwsContext* scaler) const { sws_freeContext(scaler); }
  };
  using Layout = std::array<int, 8>;  // what a scaler is made for
  struct Scaler {
    std::unique_ptr<SwsContext, ScalerDeleter> context;
    Layout layout{};
  };

  enum class Part { whole, top_field, bottom_field };
  SwsContext& scaler(const AVFrame& frame, Part part);
  void scale(const AVFrame& frame, Part part, uint8_t* pixels, int stride);
  Orientation orientation(const AVFrame& frame) const;

  const AVStream& stream_;
  std::optional<Orientation> still_;
  std::array<Scaler, 3> scalers_;  // one for each Part
};

}  // namespace gridpool
