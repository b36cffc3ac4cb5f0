#include "timeline.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "reader.hpp"
#include "refusal.hpp"

namespace gridpool {
namespace {

constexpr size_t kSlides = 4;  // frames: a clip of more is not a slide show

std::vector<Wide> gaps_of(const std::vector<int64_t>& times) {
  std::vector<Wide> gaps;
  for (size_t i = 1; i < times.size(); ++i) gaps.push_back(static_cast<Wide>(times[i]) - times[i - 1]);
  return gaps;
}

/// last: how long the file shows the last frame; if it doesn't say (0), that is as long as most frames before it, or one frame at
/// the container's rate if there is no other.
Timeline timeline_of(const Reader& reader, std::vector<int64_t> times, int64_t last, AVRational tick) {
  const AVRational rate = reader.container().rate();
  const bool is_known = last || times.size() > 1;
  Wide shown = last;
  if (!last && is_known) {
    std::vector<Wide> gaps = gaps_of(times);
    const auto middle = gaps.begin() + static_cast<std::ptrdiff_t>((gaps.size() - 1) / 2);
    std::nth_element(gaps.begin(), middle, gaps.end());
    shown = *middle;
  }
  Timeline line{std::move(times)};
  line.span = static_cast<Wide>(line.times.back()) - line.times.front() + shown;
  line.duration = is_known ? seconds_of(line.span, tick) : rate.num > 0 && rate.den > 0 ? av_q2d(av_inv_q(rate)) : 0;
  line.tick = tick, line.cut = reader.is_cut();
  return line;
}

}  // namespace

double seconds_of(Wide ticks, AVRational tick) { return static_cast<double>(ticks * tick.num) / tick.den; }

std::optional<Timeline> Timeline::from_packets(const std::filesystem::path& path) {
  std::map<int64_t, int64_t> durations;
  std::vector<int64_t> keys;
  std::vector<int> sizes;
  // The mov demuxer of older FFmpegs omits durations if frames are reordered: they are the steps of decoding times.
  std::optional<std::pair<int64_t, int64_t>> open_step;  // presentation and decoding time of the packet before
  const auto close_step = [&](int64_t next) {
    const auto shown = open_step ? durations.find(open_step->first) : durations.end();
    if (shown != durations.end() && next > open_step->second) shown->second = next - open_step->second;
    open_step.reset();
  };
  Reader reader(path);
  const Container& container = reader.container();
  reader.check_length();
  while (const AVPacket* packet = reader.read()) {
    sizes.push_back(packet->size);
    if (packet->dts != AV_NOPTS_VALUE) close_step(packet->dts);
    if (packet->pts == AV_NOPTS_VALUE || durations.count(packet->pts)) return std::nullopt;
    if (packet->flags & AV_PKT_FLAG_KEY) {
      if (!keys.empty() && packet->pts < keys.back()) return std::nullopt;  // a new clock: files were joined
      keys.push_back(packet->pts);
    }
    // What is shown before the first keyframe can't be decoded; what an edit list cuts is decoded but not shown.
    const bool is_shown = !keys.empty() && packet->pts >= keys.front() && !(packet->flags & AV_PKT_FLAG_DISCARD);
    if (is_shown) durations[packet->pts] = packet->duration;
    if (container.is_mov() && !packet->duration && packet->dts != AV_NOPTS_VALUE) open_step = {packet->pts, packet->dts};
  }
  if (container.stream->duration != AV_NOPTS_VALUE) close_step(container.stream->duration);
  reader.check_index(sizes);
  if (durations.empty()) return std::nullopt;
  std::vector<int64_t> times;
  for (const auto& [time, duration] : durations) times.push_back(time);
  Timeline timeline = timeline_of(reader, std::move(times), durations.rbegin()->second, container.tick());
  timeline.keys = std::move(keys);
  return timeline;
}

Timeline Timeline::from_frames(const std::filesystem::path& path, bool strict) {
  Reader reader(path, strict, false);  // it is read to its end, which threads would have to decode again
  const Container& container = reader.container();
  std::vector<int64_t> times;
  int64_t duration = 0;
  Wide shift = 0;
  bool is_known = true;
  while (const FramePtr next = reader.next()) {
    const AVFrame& frame = *next;
    is_known = is_known && frame.pts != AV_NOPTS_VALUE;
    if (is_known && !times.empty() && frame.pts + shift <= times.back() && is_keyframe(frame)) {
      const Wide last = times.back(), step = times.size() > 1 ? last - times[times.size() - 2] : 1;
      shift = last + (duration ? duration : step) - frame.pts;
    }
    const Wide time = frame.pts + shift;
    is_known = is_known && time <= std::numeric_limits<int64_t>::max() && (times.empty() || times.back() < time);
    times.push_back(is_known ? static_cast<int64_t>(time) : 0);
    duration = shown_ticks(frame);
  }
  if (times.empty()) throw no_frames(path.string());
  if (is_known) return timeline_of(reader, std::move(times), duration, container.tick());
  std::iota(times.begin(), times.end(), 0);
  return timeline_of(reader, std::move(times), 1, container.interval());
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

std::vector<int64_t> Timeline::keys_before(int64_t index) const {
  const int64_t key = std::upper_bound(keys.begin(), keys.end(), times[static_cast<size_t>(index)]) - keys.begin() - 1;
  std::vector<int64_t> found;
  for (const int64_t back : {0, 1, 2, 4}) found.push_back(keys[static_cast<size_t>(std::max<int64_t>(0, key - back))]);
  return found;
}

int64_t Timeline::entry(int64_t index) const {
  return std::lower_bound(times.begin(), times.end(), keys_before(index).front()) - times.begin();
}

double Timeline::seconds(int64_t index) const {
  return seconds_of(static_cast<Wide>(times[static_cast<size_t>(index)]) - times.front(), tick);
}

}  // namespace gridpool
