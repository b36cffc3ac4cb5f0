// How runtime/video.py does it: times come from the packets, runs of wanted frames are decoded from the keyframe before
// them; where the packets don't tell, the file is decoded from its start. Both ways give the same frames.
#include "gridpool/video.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "av.hpp"
#include "rgb.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMaxFrames = 4096;
constexpr int64_t kSeekGain = 4;  // frames that a seek must save; a flushed decoder takes about as many to give its first frame

// Containers and image files that hold one clip: no text drawn as video, no playlists that open other files.
constexpr const char* kFormats =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,mxf,nut,rm,wtv,dv,ivf,obu,h264,hevc,vvc,m4v,mpegvideo,mjpeg,"
    "yuv4mpegpipe,gif,apng,image2,png_pipe,jpeg_pipe,webp_pipe,webp_anim,bmp_pipe,tiff_pipe,ppm_pipe";

using Wide = __int128;  // presentation times are any 64-bit numbers, and they are multiplied

VideoError damage(const fs::path& path, std::optional<double> seconds, const std::string& reason) {
  const std::string where = seconds ? format("after %.2f s", std::max(0.0, *seconds)) : "at its first frame";
  return VideoError(path.string() + " is damaged " + where + " (" + reason + "); expected a file that plays to its end, copy it again");
}

/// One rounding, that of the division: the product is exact for any clip shorter than years.
double seconds_of(Wide ticks, AVRational tick) { return static_cast<double>(ticks * tick.num) / tick.den; }

/// When each frame is shown, in ticks, in order; `span` includes the time of the last one; `keys` are decoder entries.
struct Timeline {
  std::vector<int64_t> times;
  Wide span = 0;
  double duration = 0;  // seconds; the span of a single frame without a duration may be a fraction of a tick
  AVRational tick{};    // seconds
  std::vector<int64_t> keys;

  bool has_constant_rate() const {
    // Containers round times to their tick (Matroska's is a millisecond), so every time may be off by one.
    const Wide last = static_cast<Wide>(times.size()) - 1, travel = static_cast<Wide>(times.back()) - times.front();
    for (size_t i = 0; i < times.size(); ++i) {
      const Wide off = (static_cast<Wide>(times[i]) - times.front()) * last - static_cast<Wide>(i) * travel;
      if (off > last || off < -last) return false;
    }
    return true;
  }

  std::vector<int64_t> sample(int64_t frames) const {
    std::vector<int64_t> indices;
    const auto total = static_cast<int64_t>(times.size());
    const bool constant = has_constant_rate();
    for (int64_t i = 0; i < frames; ++i) {
      if (constant) {
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

  /// The keyframe, as a place in `keys`, from which frame `index` can be decoded.
  int64_t key(int64_t index) const {
    const auto next = std::upper_bound(keys.begin(), keys.end(), times[static_cast<size_t>(index)]);
    return std::max<int64_t>(0, next - keys.begin() - 1);
  }

  /// The frame that this keyframe is.
  int64_t entry(int64_t index) const {
    return std::lower_bound(times.begin(), times.end(), keys[static_cast<size_t>(key(index))]) - times.begin();
  }

  double seconds(int64_t index) const {
    return seconds_of(static_cast<Wide>(times[static_cast<size_t>(index)]) - times.front(), tick);
  }
};

AVRational tick_of(const AVStream& stream) {
  return stream.time_base.num > 0 && stream.time_base.den > 0 ? stream.time_base : AVRational{1, 1000000};  // FFmpeg's own unit
}

/// Seconds a frame at the stream's average rate; `otherwise` for a stream that names none.
AVRational average_tick(const AVStream& stream, AVRational otherwise) {
  const AVRational rate = stream.avg_frame_rate;
  return rate.num > 0 && rate.den > 0 ? AVRational{rate.den, rate.num} : otherwise;
}

/// `last` is how long the file says its last frame is shown; where it doesn't, as long as most frames before it.
Timeline timeline_of(std::vector<int64_t> times, int64_t last, const AVStream& stream, AVRational tick, std::vector<int64_t> keys = {}) {
  Timeline line{std::move(times), 0, 0, tick, std::move(keys)};
  const Wide travel = static_cast<Wide>(line.times.back()) - line.times.front();
  Wide shown = last;
  if (!last && line.times.size() > 1) {
    std::vector<Wide> gaps;
    for (size_t i = 1; i < line.times.size(); ++i) gaps.push_back(static_cast<Wide>(line.times[i]) - line.times[i - 1]);
    const auto middle = gaps.begin() + static_cast<std::ptrdiff_t>((gaps.size() - 1) / 2);
    std::nth_element(gaps.begin(), middle, gaps.end());
    shown = *middle;
  }
  line.span = travel + shown;
  line.duration = !last && line.times.size() == 1 ? av_q2d(average_tick(stream, {0, 1})) : seconds_of(line.span, tick);
  return line;
}

/// An opened file; decodes from where it stands.
class Source {
 public:
  explicit Source(const fs::path& path) : packet_(owned<PacketPtr>(av_packet_alloc())) {
    AVDictionary* options = nullptr;
    // The file protocol alone: neither a path that looks like an address nor a reference in the file opens anything else.
    av_dict_set(&options, "format_whitelist", kFormats, 0);
    av_dict_set(&options, "protocol_whitelist", "file", 0);
    av_dict_set(&options, "pattern_type", "none", 0);
    AVFormatContext* format = nullptr;
    int status = avformat_open_input(&format, ("file:" + path.string()).c_str(), nullptr, &options);
    av_dict_free(&options);
    format_.reset(status < 0 ? nullptr : format);
    if (status >= 0) status = avformat_find_stream_info(format_.get(), nullptr);
    if (status < 0) {
      throw VideoError(path.string() + " is not a video, or not all of one (" + av_reason(status) +
                       "); expected a file such as mp4, mkv or webm");
    }
    try {
      std::tie(stream_, codec_) = open_decoder(*format_, path.string());
    } catch (const AvFailure& failure) {
      throw damage(path, std::nullopt, av_reason(failure.number));
    }
  }

  AVStream& stream() const { return *stream_; }
  bool is_mov() const { return std::string_view(format_->iformat->name).substr(0, 4) == "mov,"; }

  /// The next packet of the video stream that is not empty; null at the end.
  AVPacket* read() {
    for (;;) {
      av_packet_unref(packet_.get());
      const int status = av_read_frame(format_.get(), packet_.get());
      if (status == AVERROR_EOF) return nullptr;
      av_checked(status);
      if (packet_->stream_index == stream_->index && packet_->size > 0) return packet_.get();
    }
  }

  /// The next frame in the order of showing; null at the end. Starts at the first keyframe from where the file stands.
  /// Frames that are shown before that keyframe but stored after it are left out: they refer to frames not seen.
  FramePtr next() {
    while (ready_.empty() && !ended_) {
      AVPacket* packet = read();
      if (!packet && !entered_) return nullptr;
      if (!packet) {
        ended_ = true;
        decode(nullptr);
      } else if (!entered_) {
        if (packet->flags & AV_PKT_FLAG_KEY) enter(*packet);
      } else if (packet->pts == AV_NOPTS_VALUE || entry_ == AV_NOPTS_VALUE || packet->pts >= entry_) {
        decode(packet);
      }
    }
    if (ready_.empty()) return nullptr;
    FramePtr frame = std::move(ready_.front());
    ready_.pop_front();
    return frame;
  }

  /// Seek to the keyframe that frame `index` needs.
  void seek(const Timeline& timeline, int64_t index) {
    const int64_t wanted = timeline.key(index);
    for (const int64_t back : {0, 1, 2, 4}) {  // containers without an index (MPEG-TS) are searched by guess and may overshoot
      const int64_t key = timeline.keys[static_cast<size_t>(std::max<int64_t>(0, wanted - back))];
      av_checked(av_seek_frame(format_.get(), stream_->index, key, AVSEEK_FLAG_BACKWARD));
      avcodec_flush_buffers(codec_.get());
      ready_.clear();
      ended_ = entered_ = false;
      AVPacket* packet = read();
      while (packet && !(packet->flags & AV_PKT_FLAG_KEY)) packet = read();
      if (packet && packet->pts != AV_NOPTS_VALUE && packet->pts <= timeline.keys[static_cast<size_t>(wanted)]) return enter(*packet);
    }
    ended_ = entered_ = true;
  }

 private:
  void enter(const AVPacket& key) {
    entered_ = true;
    entry_ = key.pts;
    decode(&key);
  }

  void decode(const AVPacket* packet) {
    av_checked(avcodec_send_packet(codec_.get(), packet));
    std::deque<FramePtr> decoded;  // a packet's frames count only if all of it can be decoded
    for (;;) {
      auto frame = owned<FramePtr>(av_frame_alloc());
      const int status = avcodec_receive_frame(codec_.get(), frame.get());
      if (status == AVERROR(EAGAIN) || status == AVERROR_EOF) break;
      av_checked(status);
      decoded.push_back(std::move(frame));
    }
    std::move(decoded.begin(), decoded.end(), std::back_inserter(ready_));
  }

  FormatPtr format_;
  AVStream* stream_ = nullptr;
  CodecPtr codec_;
  PacketPtr packet_;
  std::deque<FramePtr> ready_;
  int64_t entry_ = AV_NOPTS_VALUE;
  bool entered_ = false, ended_ = false;
};

/// Refuse a file that ends before the frames that its own index lists; the demuxer would just stop there.
void check_length(const fs::path& path, AVStream& stream) {
  const auto length = static_cast<int64_t>(fs::file_size(path));
  for (int i = 0; i < avformat_index_get_entries_count(&stream); ++i) {
    const AVIndexEntry* entry = avformat_index_get_entry(&stream, i);
    if (static_cast<Wide>(entry->pos) + entry->size > length) {
      const double at = seconds_of(std::max<int64_t>(0, entry->timestamp), tick_of(stream));
      throw VideoError(format("%s is cut off at %.2f s: it has %lld bytes and its index lists more; copy it again", path.c_str(), at,
                              static_cast<long long>(length)));
    }
  }
}

/// The timeline as the packets tell it; none where they don't tell every frame's time.
std::optional<Timeline> packet_timeline(const fs::path& path) {
  std::map<int64_t, int64_t> durations;
  std::vector<int64_t> keys;
  std::optional<int64_t> damaged_at;
  // The mov demuxer of older FFmpegs leaves durations out where frames are reordered: they are the steps of decoding times.
  std::optional<std::pair<int64_t, int64_t>> open_step;  // presentation and decoding time of the packet before
  const auto close_step = [&](int64_t next) {
    const auto shown = open_step ? durations.find(open_step->first) : durations.end();
    if (shown != durations.end() && next > open_step->second) shown->second = next - open_step->second;
    open_step.reset();
  };
  Source source(path);
  check_length(path, source.stream());
  try {
    while (const AVPacket* packet = source.read()) {
      if (packet->dts != AV_NOPTS_VALUE) close_step(packet->dts);
      if (packet->pts == AV_NOPTS_VALUE || durations.count(packet->pts)) return std::nullopt;
      if (damaged_at) {  // and the file goes on: it is not just that a recording was stopped there
        const double at = seconds_of(static_cast<Wide>(*damaged_at) - keys.front(), tick_of(source.stream()));
        throw damage(path, at, "packets are missing or incomplete");
      }
      if (packet->flags & AV_PKT_FLAG_CORRUPT && !keys.empty()) damaged_at = packet->pts;
      if (packet->flags & AV_PKT_FLAG_KEY) keys.push_back(packet->pts);
      // What is shown before the first keyframe can't be decoded; what an edit list cuts is decoded but not shown.
      if (!keys.empty() && packet->pts >= keys.front() && !(packet->flags & AV_PKT_FLAG_DISCARD)) durations[packet->pts] = packet->duration;
      if (source.is_mov() && !packet->duration && packet->dts != AV_NOPTS_VALUE) open_step = {packet->pts, packet->dts};
    }
    if (source.stream().duration != AV_NOPTS_VALUE) close_step(source.stream().duration);
  } catch (const AvFailure&) {
    return std::nullopt;  // decoding from the start will tell where
  }
  if (durations.empty()) return std::nullopt;
  std::vector<int64_t> times;
  for (const auto& [time, duration] : durations) times.push_back(time);
  std::sort(keys.begin(), keys.end());
  return timeline_of(std::move(times), durations.rbegin()->second, source.stream(), tick_of(source.stream()), std::move(keys));
}

using Taken = std::map<int64_t, Image>;
using Each = std::function<Image(Image)>;

void take(Clip& clip, Taken& taken, int64_t index, RgbConverter& rgb, const AVFrame& frame, const Each& each) {
  Image image = rgb.convert(frame);
  clip.height = image.height, clip.width = image.width;
  taken[index] = each(std::move(image));
}

/// Take the sampled frames by their times; false where a frame does not come out as the packets promised.
bool take_by_time(const fs::path& path, const Timeline& timeline, const std::vector<int64_t>& indices, const Each& each, bool seek,
                  Clip& clip, Taken& taken) {
  Source source(path);
  RgbConverter rgb(source.stream());
  taken.clear();
  int64_t position = -1;  // the last frame that the decoder gave
  for (const int64_t index : std::set<int64_t>(indices.begin(), indices.end())) {
    const int64_t time = timeline.times[static_cast<size_t>(index)];
    try {
      if (seek && timeline.entry(index) > position + kSeekGain) source.seek(timeline, index);
      FramePtr frame = source.next();
      while (frame && (frame->pts == AV_NOPTS_VALUE || frame->pts < time)) frame = source.next();
      if (!frame || frame->pts != time) return false;
      take(clip, taken, index, rgb, *frame, each);
    } catch (const AvFailure&) {
      return false;  // damage, or a stream that can't be entered here: decoding from the start will tell
    }
    position = index;
  }
  return true;
}

/// Decode from the start and hand each frame to `visit` until it returns false; damage becomes a VideoError that says where.
void visit_frames(const fs::path& path, Source& source, const std::function<bool(const AVFrame&)>& visit) {
  std::optional<double> first, last;
  try {
    while (const FramePtr frame = source.next()) {
      if (frame->pts != AV_NOPTS_VALUE) {
        const double time = seconds_of(frame->pts, tick_of(source.stream()));
        if (!first) first = time;
        last = time - *first;
      }
      if (!visit(*frame)) return;
    }
  } catch (const AvFailure& failure) {
    throw damage(path, last, av_reason(failure.number));
  }
}

/// The timeline of a file that has to be decoded to be known.
Timeline decoded_timeline(const fs::path& path) {
  Source source(path);
  std::vector<int64_t> times;
  int64_t duration = 0;
  bool rising = true;
  visit_frames(path, source, [&](const AVFrame& frame) {
    rising = rising && frame.pts != AV_NOPTS_VALUE && (times.empty() || times.back() < frame.pts);
    times.push_back(frame.pts);
    duration = shown_ticks(frame);
    return true;
  });
  if (times.empty()) throw VideoError(path.string() + " has a video stream without a frame that can be decoded; expected at least one frame");
  if (rising) return timeline_of(std::move(times), duration, source.stream(), tick_of(source.stream()));
  for (size_t i = 0; i < times.size(); ++i) times[i] = static_cast<int64_t>(i);
  return timeline_of(std::move(times), 1, source.stream(), average_tick(source.stream(), {1, 25}));
}

/// Take the sampled frames by number, decoding from the start.
void take_by_number(const fs::path& path, const std::vector<int64_t>& indices, const Each& each, Clip& clip, Taken& taken) {
  const std::set<int64_t> wanted(indices.begin(), indices.end());
  Source source(path);
  RgbConverter rgb(source.stream());
  int64_t index = 0;
  taken.clear();
  visit_frames(path, source, [&](const AVFrame& frame) {
    if (wanted.count(index)) take(clip, taken, index, rgb, frame, each);
    ++index;
    return taken.size() < wanted.size();
  });
  if (taken.size() < wanted.size()) throw damage(path, std::nullopt, "it gave other frames when it was read again");
}

}  // namespace

int64_t Clip::repeated() const {
  return static_cast<int64_t>(indices.size() - std::set<int64_t>(indices.begin(), indices.end()).size());
}

void check_video_file(const fs::path& path) {
  const std::string name = path.string();
  std::error_code failed;
  const fs::file_status status = fs::status(path, failed);
  if (!fs::exists(status)) throw VideoError("no video at " + name + ": no such file");
  if (fs::is_directory(status)) throw VideoError(name + " is a directory; expected a video file");
  if (!fs::is_regular_file(status)) throw VideoError(name + " is not a regular file; expected a video file");
  if (::access(path.c_str(), R_OK) != 0) throw VideoError(name + " can't be read: permission denied");
  if (fs::file_size(path, failed) == 0) throw VideoError(name + " is empty (0 bytes); expected a video file");
}

Clip sample_frames(const fs::path& path, int64_t frames, const Each& each) {
  if (frames < 1 || frames > kMaxFrames) {
    throw VideoError(format("%lld frames asked of %s; expected 1 to %lld", static_cast<long long>(frames), path.c_str(),
                            static_cast<long long>(kMaxFrames)));
  }
  check_video_file(path);
  av_log_set_level(AV_LOG_QUIET);  // what is wrong with a file is said in one line, and by us
  Clip clip;
  Taken taken;
  std::optional<Timeline> timeline = packet_timeline(path);
  if (timeline) clip.indices = timeline->sample(frames);
  if (!timeline || !(take_by_time(path, *timeline, clip.indices, each, true, clip, taken) ||
                     take_by_time(path, *timeline, clip.indices, each, false, clip, taken))) {
    timeline = decoded_timeline(path);
    clip.indices = timeline->sample(frames);
    take_by_number(path, clip.indices, each, clip, taken);
  }
  for (const int64_t index : clip.indices) {
    clip.frames.push_back(taken.at(index));
    clip.timestamps.push_back(timeline->seconds(index));
  }
  clip.duration = timeline->duration;
  clip.total = static_cast<int64_t>(timeline->times.size());
  return clip;
}

}  // namespace gridpool
