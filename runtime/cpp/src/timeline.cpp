#include "timeline.hpp"

#include <algorithm>

namespace gridpool {
namespace {

constexpr size_t kSlides = 4;  // frames: a clip of more is not a slide show

std::vector<Wide> gaps_of(const std::vector<int64_t>& times) {
  std::vector<Wide> gaps;
  for (size_t i = 1; i < times.size(); ++i) gaps.push_back(static_cast<Wide>(times[i]) - times[i - 1]);
  return gaps;
}

}  // namespace

double seconds_of(Wide ticks, AVRational tick) { return static_cast<double>(ticks * tick.num) / tick.den; }

Timeline Timeline::of(std::vector<int64_t> times, int64_t last, AVRational rate, AVRational tick, std::vector<int64_t> keys) {
  Timeline line{std::move(times), 0, 0, tick, std::move(keys), false};
  Wide shown = last;
  if (!last && line.times.size() > 1) {
    std::vector<Wide> gaps = gaps_of(line.times);
    const auto middle = gaps.begin() + static_cast<std::ptrdiff_t>((gaps.size() - 1) / 2);
    std::nth_element(gaps.begin(), middle, gaps.end());
    shown = *middle;
  }
  line.span = static_cast<Wide>(line.times.back()) - line.times.front() + shown;
  const bool is_known = last || line.times.size() > 1;
  line.duration = is_known ? seconds_of(line.span, tick) : rate.num > 0 && rate.den > 0 ? av_q2d(av_inv_q(rate)) : 0;
  return line;
}

bool Timeline::has_gap() const {
  if (times.size() <= kSlides) return false;
  const std::vector<Wide> gaps = gaps_of(times);
  return 2 * *std::max_element(gaps.begin(), gaps.end()) > span;
}

bool Timeline::has_constant_rate() const {
  // Containers round times to their tick (Matroska's is a millisecond), so every time may be off by one.
  const Wide last = static_cast<Wide>(times.size()) - 1, travel = static_cast<Wide>(times.back()) - times.front();
  if (last && (span - travel) * last > 2 * travel) return false;  // the last frame stays for more than two intervals
  for (size_t i = 0; i < times.size(); ++i) {
    const Wide off = (static_cast<Wide>(times[i]) - times.front()) * last - static_cast<Wide>(i) * travel;
    if (off > last || off < -last) return false;
  }
  return true;
}

std::vector<int64_t> Timeline::sample(int64_t frames) const {
  std::vector<int64_t> indices;
  const auto total = static_cast<int64_t>(times.size());
  const bool by_number = has_gap() || has_constant_rate();
  for (int64_t i = 0; i < frames; ++i) {
    if (by_number) {
      indices.push_back(i * total / frames);
    } else {  // the last frame whose time is not past first + i * span / frames
      const auto shown_later = std::partition_point(times.begin(), times.end(), [&](int64_t time) {
        return (static_cast<Wide>(time) - times.front()) * frames <= static_cast<Wide>(i) * span;
      });
      indices.push_back(std::max<int64_t>(0, shown_later - times.begin() - 1));
    }
  }
  return indices;
}

int64_t Timeline::key(int64_t index) const {
  const auto next = std::upper_bound(keys.begin(), keys.end(), times[static_cast<size_t>(index)]);
  return std::max<int64_t>(0, next - keys.begin() - 1);
}

int64_t Timeline::entry(int64_t index) const {
  return std::lower_bound(times.begin(), times.end(), keys[static_cast<size_t>(key(index))]) - times.begin();
}

double Timeline::seconds(int64_t index) const {
  return seconds_of(static_cast<Wide>(times[static_cast<size_t>(index)]) - times.front(), tick);
}

}  // namespace gridpool
