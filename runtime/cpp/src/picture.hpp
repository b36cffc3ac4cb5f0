// What the file of a still picture tells that FFmpeg does not: its orientation, and whether it is complete.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "orientation.hpp"

namespace gridpool {

struct Picture {
  std::string format;        ///< JPEG, PNG, WebP, TIFF, BMP, PNM, HEIC or AVIF
  Orientation orientation;
  bool is_animated = false;  ///< a PNG or WebP of several frames
};

/// The picture that a file's first bytes announce; none for a video, an animated GIF, a stream of JPEG pictures.
/// VideoError for a picture of which FFmpeg would show a part only, or that it can't read: one in tiles, an animated WebP.
std::optional<Picture> read_picture(const std::filesystem::path& path);

/// The error for a picture that FFmpeg can't read.
VideoError damaged_picture(const std::filesystem::path& path, const std::string& reason);

}  // namespace gridpool
