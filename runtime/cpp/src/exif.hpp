// The orientation that a camera or an editor wrote into a picture: EXIF's tag 0x0112, or XMP's tiff:Orientation.
#pragma once

#include <optional>

#include "bytes.hpp"

namespace gridpool {

/// The number that a TIFF structure's first directory has for a tag.
std::optional<uint64_t> tiff_number(ByteSource& tiff, uint64_t tag);

/// Of a TIFF structure: a TIFF file, or the EXIF block of any other picture. None if it has no such tag.
std::optional<int> tiff_orientation(ByteSource& tiff);

/// Of a packet of XMP.
std::optional<int> xmp_orientation(std::string_view xmp);

/// Of the file of a JPEG, PNG or WebP picture; EXIF comes before XMP, as in Pillow.
std::optional<int> jpeg_orientation(ByteSource& file);
std::optional<int> png_orientation(ByteSource& file);
std::optional<int> webp_orientation(ByteSource& file);

}  // namespace gridpool
