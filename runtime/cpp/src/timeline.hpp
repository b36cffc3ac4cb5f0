// When each frame of a clip is shown, and which T of them are sampled (runtime/media/timeline.py explains the choice).
//
// Times are in ticks of the stream.
#pragma once

#include <cstdint>
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
  Wide span = 0;              // includes the time of the last frame
  double duration = 0;        // seconds; the span of a single frame without a duration may be a fraction of a tick
  AVRational tick{1, 1};      // seconds
  std::vector<int64_t> keys;  // decoder entries
  bool cut = false;           // the file ends inside a frame, which is left out

  /// last: how long the last frame is shown by the file; if it is silent (0), as long as most frames before it, or
  /// at `rate` frames a second if there is no other.
  static Timeline of(std::vector<int64_t> times, int64_t last, AVRational rate, AVRational tick, std::vector<int64_t> keys = {});

  /// Whether one gap between two frames is most of the clip, as after a wrong timestamp; not of a slide show.
  bool has_gap() const;

  /// Numbers of the frames that are on the screen at the start of each of `frames` equal parts of the clip.
  std::vector<int64_t> sample(int64_t frames) const;

  /// The keyframe, as a place in `keys`, from which frame `index` can be decoded.
  int64_t key(int64_t index) const;

  /// The frame that this keyframe is.
  int64_t entry(int64_t index) const;

  double seconds(int64_t index) const;

 private:
  bool has_constant_rate() const;
};

}  // namespace gridpool
