// When each frame of a clip is shown, and which T of them are sampled (runtime/media/timeline.py explains the choice).
//
// Times are in ticks of the stream.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

extern "C" {
#include <libavutil/rational.h>
}

namespace gridpool {

using Wide = __int128;  // presentation times are any 64-bit numbers, and they are multiplied

/// One rounding, that of the division: the product is exact for any clip shorter than years.
double seconds_of(Wide ticks, AVRational tick);

/// When each frame is shown, in order.
struct Timeline {
  std::vector<int64_t> times;
  Wide span = 0;                   // includes the time of the last frame
  double duration = 0;             // seconds; the span of a single frame without a duration may be a fraction of a tick
  AVRational tick{1, 1};           // seconds
  std::vector<int64_t> keys = {};  // times at which decoding may begin
  bool cut = false;                // the file ends inside a frame, which is left out

  /// From a file's packets, which is fast; none if they don't tell every frame's time. VideoError for damage.
  static std::optional<Timeline> from_packets(const std::filesystem::path& path);

  /// By decoding all of a file. If files were joined, each begins when the one before it ends. VideoError for damage, if
  /// `strict` for any, and for a file without frames.
  static Timeline from_frames(const std::filesystem::path& path, bool strict);

  /// Whether one gap between two frames is most of the clip, as after a wrong timestamp; not of a slide show.
  bool has_gap() const;

  /// Numbers of the frames that are on the screen at the start of each of `frames` equal parts of the clip, in order.
  std::vector<int64_t> sample(int64_t frames) const;

  /// Times of keyframes from which frame `index` can be decoded: the nearest, and three further back for when a seek overshoots.
  std::vector<int64_t> keys_before(int64_t index) const;

  /// The frame that the nearest of them is.
  int64_t entry(int64_t index) const;

  double seconds(int64_t index) const;

 private:
  bool has_constant_rate() const;
};

}  // namespace gridpool
