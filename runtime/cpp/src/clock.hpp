// The times of a stream's frames as seconds after its first frame, which never go back (runtime/media/stream.py).
#pragma once

#include <algorithm>
#include <optional>

namespace gridpool {

/// A source's clock that jumps back at a keyframe means that files were joined or a camera restarted: the new clock continues where the
/// old one ended.
class Clock {
 public:
  /// time: on the source's clock, none if unknown; interval: seconds from a frame to the next, as far as is known.
  double seconds(std::optional<double> time, bool is_keyframe, double interval) {
    if (!last_) {
      last_ = 0, start_ = time.value_or(0);
    } else if (!time) {
      *last_ += interval;
    } else if (*time - start_ <= *last_ && is_keyframe) {
      *last_ += interval;
      start_ = *time - *last_;
    } else {
      last_ = std::max(*last_, *time - start_);
    }
    return *last_;
  }

  /// Of the newest frame; none before the first.
  std::optional<double> last() const { return last_; }

 private:
  std::optional<double> last_;
  double start_ = 0;  // what is zero on the source's clock
};

}  // namespace gridpool
