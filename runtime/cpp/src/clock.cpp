#include "clock.hpp"

#include <algorithm>

namespace gridpool {

double Clock::seconds(std::optional<double> time, bool is_keyframe, double interval) {
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

}  // namespace gridpool
