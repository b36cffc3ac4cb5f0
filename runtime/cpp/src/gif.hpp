// Where a GIF ends (runtime/media/gif.py).
#pragma once

#include <cstdint>
#include <optional>

#include "bytes.hpp"

namespace gridpool {

/// How many complete frames a file has that ends inside one; none for a file that ends after a block.
std::optional<int64_t> gif_frames_before_cut(ByteSource& file);

}  // namespace gridpool
