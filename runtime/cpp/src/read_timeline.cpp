#include "read_timeline.hpp"

#include <limits>
#include <map>

#include "reader.hpp"
#include "refusal.hpp"

namespace gridpool {
namespace fs = std::filesystem;

std::optional<Timeline> packet_timeline(const fs::path& path) {
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
    if (!keys.empty() && packet->pts >= keys.front() && !(packet->flags & AV_PKT_FLAG_DISCARD)) durations[packet->pts] = packet->duration;
    if (container.is_mov() && !packet->duration && packet->dts != AV_NOPTS_VALUE) open_step = {packet->pts, packet->dts};
  }
  if (container.stream->duration != AV_NOPTS_VALUE) close_step(container.stream->duration);
  reader.check_index(sizes);
  if (durations.empty()) return std::nullopt;
  std::vector<int64_t> times;
  for (const auto& [time, duration] : durations) times.push_back(time);
  Timeline timeline = Timeline::of(std::move(times), durations.rbegin()->second, container.rate(), container.tick(), std::move(keys));
  timeline.cut = reader.is_cut();
  return timeline;
}

Timeline decoded_timeline(const fs::path& path, bool strict) {
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
  if (!is_known) {
    for (size_t i = 0; i < times.size(); ++i) times[i] = static_cast<int64_t>(i);
  }
  const AVRational rate = container.rate();
  Timeline timeline = Timeline::of(std::move(times), is_known ? duration : 1, rate, is_known ? container.tick() : container.interval());
  timeline.cut = reader.is_cut();
  return timeline;
}

}  // namespace gridpool
