// A video file in, T upright RGB frames out: the frames and times that the Python runtime chooses (runtime/media/clip.py).
//
// T frames asked for, h, w rows and columns of a frame.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "gridpool/error.hpp"

namespace gridpool {

/// RGB uint8 [height, width, 3], rows without padding.
struct Image {
  int height = 0, width = 0;
  std::vector<uint8_t> pixels;
};

/// T frames of a video file and where they came from.
struct Clip {
  std::vector<Image> frames;        ///< T, as `each` returned them, in order
  std::vector<int64_t> indices;     ///< T frame numbers in the file, from 0
  std::vector<double> timestamps;   ///< T presentation times in seconds after the file's first frame
  double duration = 0;              ///< seconds from the first frame to the end of the last
  int64_t total = 0;                ///< frames in the file
  int height = 0, width = 0;        ///< of a frame as shown, rotation and mirroring applied
  bool has_gap = false;             ///< one gap between two frames is most of the clip, so the frames were sampled by number
  bool cut = false;                 ///< the file ends inside a frame, which is left out

  /// How many of the T frames repeat the one before, because the clip shows no other at that time.
  GRIDPOOL_API int64_t repeated() const;

  /// What a user should know about the sampled frames, one line each.
  GRIDPOOL_API std::vector<std::string> notes() const;
};

/// Decode `frames` frames, spread evenly over the clip. `each` turns a frame into what is kept of it, so that only one is in
/// memory at its full size.
/// Throws VideoError for a count that is out of range, for a file that can't be opened or has no video, and, with the
/// position in seconds, for one that is damaged in a part that must be decoded.
GRIDPOOL_API Clip sample_frames(const std::filesystem::path& path, int64_t frames, const std::function<Image(Image)>& each);

/// VideoError for a path that is not a readable, non-empty file.
GRIDPOOL_API void check_video_file(const std::filesystem::path& path);

}  // namespace gridpool
