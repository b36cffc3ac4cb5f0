// As runtime/media/clip.py does it: times come from the packets, and runs of wanted frames are decoded from the keyframe before
// them; if the packets don't tell, the file is decoded from its start. Both ways give the same frames.
#include "gridpool/video.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "read_timeline.hpp"
#include "reader.hpp"
#include "rgb.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMaxFrames = 4096;
constexpr int64_t kSeekGain = 4;  // frames that a seek must save; a flushed decoder takes about as many to give its first frame

using Each = std::function<Image(Image)>;

/// Frames of one file, turned to RGB and handed to `each`.
class Taker {
 public:
  explicit Taker(const Each& each) : each_(each) {}

  /// Frames of another reading of the file follow; those of the one before are dropped.
  void begin(const Container& container) {
    taken_.clear();
    rgb_.emplace(*container.stream, container.orientation());
  }

  void take(int64_t index, const AVFrame& frame) {
    Image image = rgb_->convert(frame);
    height_ = image.height, width_ = image.width;
    taken_[index] = each_(std::move(image));
  }

  size_t count() const { return taken_.size(); }

  Clip clip(const Timeline& timeline, int64_t frames) const {
    Clip clip;
    clip.indices = timeline.sample(frames);
    for (const int64_t index : clip.indices) {
      clip.frames.push_back(taken_.at(index));
      clip.timestamps.push_back(timeline.seconds(index));
    }
    clip.duration = timeline.duration;
    clip.total = static_cast<int64_t>(timeline.times.size());
    clip.height = height_, clip.width = width_;
    clip.has_gap = timeline.has_gap(), clip.cut = timeline.cut;
    return clip;
  }

 private:
  const Each& each_;
  std::optional<RgbConverter> rgb_;
  std::map<int64_t, Image> taken_;
  int height_ = 0, width_ = 0;
};

std::set<int64_t> wanted_of(const Timeline& timeline, int64_t frames) {
  const std::vector<int64_t> indices = timeline.sample(frames);
  return {indices.begin(), indices.end()};
}

/// Take the sampled frames by their times; false if a frame does not come out as the packets promised.
bool take_by_time(const fs::path& path, const Timeline& timeline, int64_t frames, bool strict, bool seek, Taker& taker) {
  Reader reader(path, strict);
  taker.begin(reader.container());
  int64_t position = -1;  // the last frame that the decoder gave
  for (const int64_t index : wanted_of(timeline, frames)) {
    const int64_t time = timeline.times[static_cast<size_t>(index)];
    if (seek && timeline.entry(index) > position + kSeekGain) {
      const int64_t key = timeline.key(index);
      std::vector<int64_t> earlier;
      for (const int64_t back : {1, 2, 4}) earlier.push_back(timeline.keys[static_cast<size_t>(std::max<int64_t>(0, key - back))]);
      reader.seek(timeline.keys[static_cast<size_t>(key)], earlier);
    }
    FramePtr frame = reader.next();
    while (frame && (frame->pts == AV_NOPTS_VALUE || frame->pts < time)) frame = reader.next();
    if (!frame || frame->pts != time) return false;
    taker.take(index, *frame);
    position = index;
  }
  return true;
}

/// Take the sampled frames by number, decoding from the start.
void take_by_number(const fs::path& path, const Timeline& timeline, int64_t frames, bool strict, Taker& taker) {
  const std::set<int64_t> wanted = wanted_of(timeline, frames);
  Reader reader(path, strict);
  taker.begin(reader.container());
  for (int64_t index = 0; taker.count() < wanted.size(); ++index) {
    const FramePtr frame = reader.next();
    if (!frame) throw DamageError(path, std::nullopt, "it gave other frames when it was read again");
    if (wanted.count(index)) taker.take(index, *frame);
  }
}

/// `take_by_time`, as strictly as the file allows; false if that meets damage, or a file that can't be entered at its keyframes:
/// decoding from the start will tell.
bool take_by_packets(const fs::path& path, const Timeline& timeline, int64_t frames, bool seek, Taker& taker) {
  for (const bool strict : {true, false}) {
    try {
      if (strict || Reader(path).container().warns()) return take_by_time(path, timeline, frames, strict, seek, taker);
    } catch (const DamageError&) {
      continue;
    }
  }
  return false;
}

/// Both ways of decoding from the start agree on `strict`.
Clip clip_by_number(const fs::path& path, int64_t frames, Taker& taker) {
  std::optional<Timeline> timeline;
  bool strict = true;
  try {
    timeline = decoded_timeline(path, strict);
  } catch (const DamageError&) {
    strict = false;
    timeline = decoded_timeline(path, strict);
    if (!timeline->cut && !Reader(path).container().warns()) throw;
  }
  take_by_number(path, *timeline, frames, strict, taker);
  return taker.clip(*timeline, frames);
}

/// The one frame of a still picture, or the first of those in its file.
Clip still_clip(const fs::path& path, int64_t frames, Taker& taker) {
  const Timeline timeline = Timeline::of({0}, 0, {0, 1}, {1, 1000});
  try {
    take_by_number(path, timeline, frames, true, taker);
  } catch (const DamageError& error) {
    throw damaged_picture(path, error.reason());
  }
  return taker.clip(timeline, frames);
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
  Taker taker(each);
  const std::optional<Picture> picture = read_picture(path);
  if (picture && !picture->is_animated) return still_clip(path, frames, taker);
  const std::optional<Timeline> timeline = packet_timeline(path);
  for (const bool seek : {true, false}) {
    if (timeline && take_by_packets(path, *timeline, frames, seek, taker)) return taker.clip(*timeline, frames);
  }
  return clip_by_number(path, frames, taker);
}

}  // namespace gridpool
