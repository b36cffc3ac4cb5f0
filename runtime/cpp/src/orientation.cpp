#include <cstdlib>
#include <cstring>

#include "picture.hpp"

namespace gridpool {

Orientation Orientation::then(const Orientation& next) const {
  const bool x = next.swapped ? mirror_y : mirror_x, y = next.swapped ? mirror_x : mirror_y;
  return {swapped != next.swapped, x != next.mirror_x, y != next.mirror_y};
}

Orientation Orientation::from_exif(std::optional<int> number) {
  if (!number || *number < 1 || *number > 8) return {};
  const int way = (*number - 1) % 4;
  return {*number > 4, way == 1 || way == 2, way >= 2};
}

Orientation Orientation::from_matrix(const int32_t* matrix) {
  const int64_t a = matrix[0], b = matrix[1], c = matrix[3], d = matrix[4];
  const bool swapped = std::llabs(b) + std::llabs(c) > std::llabs(a) + std::llabs(d);
  return swapped ? Orientation{true, c < 0, b < 0} : Orientation{false, a < 0, d < 0};
}

Image oriented(Image image, const Orientation& orientation) {
  if (orientation.is_upright()) return image;
  Image result{orientation.swapped ? image.width : image.height, orientation.swapped ? image.height : image.width, {}};
  result.pixels.resize(image.pixels.size());
  const int64_t row = int64_t{image.width} * 3;
  // The stored pixel behind the first one shown, and how far apart in memory its neighbours to the right and below are.
  const int64_t right = (orientation.swapped ? row : 3) * (orientation.mirror_x ? -1 : 1);
  const int64_t below = (orientation.swapped ? 3 : row) * (orientation.mirror_y ? -1 : 1);
  const int64_t first = (right < 0 ? -right * (result.width - 1) : 0) + (below < 0 ? -below * (result.height - 1) : 0);
  uint8_t* out = result.pixels.data();
  for (int64_t y = 0; y < result.height; ++y) {
    const uint8_t* pixel = image.pixels.data() + first + y * below;
    for (int64_t x = 0; x < result.width; ++x, out += 3, pixel += right) std::memcpy(out, pixel, 3);
  }
  return result;
}

}  // namespace gridpool
