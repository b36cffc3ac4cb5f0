// As runtime/media/clip.py does it: times come from the packets, and runs of wanted frames are decoded from the keyframe before
// them; if the packets don't tell, the file is decoded from its start. Both ways give the same frames.
#include "gridpool/video.hpp"

#include <algorithm>
#include <optional>
#include <set>

#include "reader.hpp"
#include "rgb.hpp"
#include "text.hpp"
#include "timeline.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMaxFrames = 4096;
constexpr int64_t kSeekGain = 4;  // frames that a seek must save; a flushed decoder takes about as many to give its first frame

using Each = std::function<Image(Image)>;

enum class Find { seeking, by_time, by_number };

/// Decode the sampled frames; none if one does not come out at the time that the packets promised.
std::optional<Clip> take(const fs::path& path, const Timeline& timeline, int64_t frames, const Each& each, bool strict, Find find) {
  Reader reader(path, strict);
  RgbConverter rgb(reader.container());
  Clip clip;
  int64_t position = -1;  // the last frame that the decoder gave
  for (const int64_t index : timeline.sample(frames)) {
    clip.indices.push_back(index);
    clip.timestamps.push_back(timeline.seconds(index));
    if (index == position) {
      clip.frames.push_back(clip.frames.back());
      continue;
    }
    FramePtr frame;
    if (find == Find::by_number) {
      for (; position < index; ++position) frame = reader.next();
      if (!frame) throw DamageError(path, std::nullopt, "it gave other frames when it was read again");
    } else {
      if (find == Find::seeking && timeline.entry(index) > position + kSeekGain) reader.seek(timeline.keys_before(index));
      const int64_t time = timeline.times[static_cast<size_t>(index)];
      do frame = reader.next();
      while (frame && (frame->pts == AV_NOPTS_VALUE || frame->pts < time));
      if (!frame || frame->pts != time) return std::nullopt;
      position = index;
    }
    Image image = rgb.convert(*frame);
    clip.height = image.height, clip.width = image.width;
    clip.frames.push_back(each(std::move(image)));
  }
  clip.duration = timeline.duration;
  clip.total = static_cast<int64_t>(timeline.times.size());
  clip.has_gap = timeline.has_gap(), clip.cut = timeline.cut;
  return clip;
}

/// By the times of packets, as strictly as the file allows; none if that meets damage, or a file that can't be entered at its
/// keyframes: decoding from the start will tell.
std::optional<Clip> take_by_packets(const fs::path& path, const Timeline& timeline, int64_t frames, const Each& each, Find find) {
  for (const bool strict : {true, false}) {
    try {
      if (strict || Reader(path).container().warns()) return take(path, timeline, frames, each, strict, find);
    } catch (const DamageError&) {
      continue;
    }
  }
  return std::nullopt;
}

/// Both ways of decoding from the start agree on `strict`.
Clip take_by_number(const fs::path& path, int64_t frames, const Each& each) {
  std::optional<Timeline> timeline;
  bool strict = true;
  try {
    timeline = Timeline::from_frames(path, strict);
  } catch (const DamageError&) {
    strict = false;
    timeline = Timeline::from_frames(path, strict);
    if (!timeline->cut && !Reader(path).container().warns()) throw;
  }
  return *take(path, *timeline, frames, each, strict, Find::by_number);
}

/// The one frame of a still picture, or the first of those in its file.
Clip take_still(const fs::path& path, int64_t frames, const Each& each) try {
  return *take(path, Timeline{{0}}, frames, each, true, Find::by_number);
} catch (const DamageError& error) {
  throw damaged_picture(path, error.reason());
}

}  // namespace

int64_t Clip::repeated() const {
  return static_cast<int64_t>(indices.size() - std::set<int64_t>(indices.begin(), indices.end()).size());
}

std::vector<std::string> Clip::notes() const {
  std::vector<std::string> notes;
  const int64_t again = repeated();
  const size_t asked = indices.size();
  if (cut) notes.push_back(concat("the file ends inside a frame: the clip is what comes before, ", total, " frames"));
  if (has_gap) {
    notes.emplace_back("one gap between two frames is most of the clip, as after a wrong timestamp: frames are sampled by number");
  }
  if (again && total < static_cast<int64_t>(asked)) {
    notes.push_back(concat("the clip is shorter than ", asked, " frames: ", again, " are repeated"));
  } else if (again) {
    notes.push_back(concat("the clip's frames are not shown equally long: ", again, " of ", asked, " sampled frames are repeated"));
  }
  return notes;
}

Clip sample_frames(const fs::path& path, int64_t frames, const Each& each) {
  if (frames < 1 || frames > kMaxFrames) {
    throw VideoError(concat(frames, " frames asked of ", path.string(), "; expected 1 to ", kMaxFrames));
  }
  check_video_file(path);
  av_log_set_level(AV_LOG_QUIET);  // a fault is one line, and ours
  const std::optional<Picture> picture = read_picture(path);
  if (picture && !picture->is_animated) return take_still(path, frames, each);
  if (const std::optional<Timeline> timeline = Timeline::from_packets(path)) {
    for (const Find find : {Find::seeking, Find::by_time}) {
      if (auto clip = take_by_packets(path, *timeline, frames, each, find)) return *std::move(clip);
    }
  }
  return take_by_number(path, frames, each);
}

}  // namespace gridpool
