// The primary picture of a HEIC or AVIF file (ISO/IEC 23008-12): what kind of item it is and how it is turned.
#pragma once

#include <optional>
#include <string>

#include "bytes.hpp"
#include "orientation.hpp"

namespace gridpool {

struct HeifPicture {
  std::string item;         ///< four characters: hvc1 or av01 for a coded picture, grid for one made of tiles
  bool is_first = false;    ///< whether the file lists no other item before it
  Orientation orientation;  ///< of its properties irot and imir; EXIF does not count in these files
};

/// None for a file that is not a HEIC or AVIF picture (a movie in the same container, for one).
std::optional<HeifPicture> heif_picture(ByteSource& file);

}  // namespace gridpool
