// What the bytes of a file tell of its pictures that FFmpeg does not: how they are turned (orientation.cpp, exif.cpp, heif.cpp), and
// whether they are complete.
#pragma once

#include "bytes.hpp"
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

struct Picture {
  Orientation orientation;
  bool is_animated = false;  ///< a PNG or WebP of several frames
};

/// The picture that a file's first bytes announce; none for a video, an animated GIF, a stream of JPEG pictures.
/// VideoError for a picture of which FFmpeg would show a part only, or that it can't read: one in tiles, an animated WebP.
std::optional<Picture> read_picture(const std::filesystem::path& path);

/// The error for a picture that FFmpeg can't read.
VideoError damaged_picture(const std::filesystem::path& path, const std::string& reason);

/// The orientation that a camera or an editor wrote into a TIFF structure (a TIFF file, or the EXIF block of any other picture):
/// EXIF's tag 0x0112, or XMP's tiff:Orientation. None if it has neither.
std::optional<int> tiff_orientation(ByteSource& tiff);

/// Of a packet of XMP.
std::optional<int> xmp_orientation(std::string_view xmp);

/// Of the file of a JPEG, PNG or WebP picture; EXIF comes before XMP, as in Pillow.
std::optional<int> jpeg_orientation(ByteSource& file);
std::optional<int> png_orientation(ByteSource& file);
std::optional<int> webp_orientation(ByteSource& file);

/// The number that a TIFF structure's first directory has for a tag.
std::optional<uint64_t> tiff_number(ByteSource& tiff, uint64_t tag);

/// The primary picture of a HEIC or AVIF file (ISO/IEC 23008-12).
struct HeifPicture {
  std::string item;         ///< four characters: hvc1 or av01 for a coded picture, grid for one made of tiles
  bool is_first = false;    ///< whether the file lists no other item before it
  Orientation orientation;  ///< of its properties irot and imir; EXIF does not count in these files
};

/// None for a file that is not a HEIC or AVIF picture (a movie in the same container, for one).
std::optional<HeifPicture> heif_picture(ByteSource& file);

/// Whether an mp4 has fragments (boxes `moof`), so that a recording may have ended in any of them. The first frames may be before
/// them, in an index up front.
bool is_fragmented(const std::filesystem::path& path);

/// How many complete frames a GIF has that ends inside one; none for a file that ends after a block (runtime/media/gif.py).
std::optional<int64_t> gif_frames_before_cut(const std::filesystem::path& path);

}  // namespace gridpool
