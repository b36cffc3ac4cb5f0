// How a stored picture is turned and mirrored to be shown: one of the eight ways of EXIF, applied to pixels.
#pragma once

#include <cstdint>
#include <optional>

#include "gridpool/video.hpp"

namespace gridpool {

/// A stored point (x, y) is shown at (±x, ±y), or at (±y, ±x) if the axes are swapped.
struct Orientation {
  bool swapped = false;                      // rows become columns
  bool mirror_x = false, mirror_y = false;   // of the picture as shown: left and right, top and bottom

  bool is_upright() const { return !swapped && !mirror_x && !mirror_y; }

  /// This one, and then `next`.
  Orientation then(const Orientation& next) const;

  /// EXIF's tag 0x0112, 1 to 8; upright for any other number, and for none.
  static Orientation from_exif(std::optional<int> number);

  /// The nearest to the 2x2 part of a display matrix of FFmpeg (nine 16.16 and 2.30 fixed-point numbers, ISO/IEC 14496-12,
  /// 6.2.2): x' = ax + cy, y' = bx + dy.
  static Orientation from_matrix(const int32_t* matrix);
};

/// `image` as it is shown.
Image oriented(Image image, const Orientation& orientation);

}  // namespace gridpool
