// Where a GIF ends (runtime/media/gif.py).
#pragma once

#include <cstdint>
#include <optional>

#include "bytes.hpp"

namespace gridpool {

/// How many whole frames a file has that ends inside a block of them; none for one that ends after a block.
std::optional<int64_t> gif_frames_before_cut(ByteSource& file);

}  // namespace gridpool
