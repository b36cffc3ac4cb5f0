// Frames as they come, from a file, a camera or the network: no seeking, no promise of how many there will be
// (runtime/media/stream.py, which defines a camera's losses).
#include "gridpool/live.hpp"

#include <atomic>

#include "clock.hpp"
#include "library.hpp"
#include "reader.hpp"
#include "refusal.hpp"
#include "rgb.hpp"
#include "text.hpp"
#include "timeline.hpp"

namespace gridpool {
namespace {

constexpr const char* kTimeout = "10000000";  // microseconds without a packet after which a network stream counts as gone

/// What reads cameras: libavdevice, which is opened only here because the eighty libraries behind it doubled every start-up.
const AVInputFormat* camera_format(const std::string& source) {
  const std::string name = "libavdevice.so." + std::to_string(avformat_version() >> 16);  // released with libavformat, under its number
  try {
    Library(name).function<void()>("avdevice_register_all")();
  } catch (const EngineError& error) {
    throw VideoError(source + " is a camera, and FFmpeg's library for those does not load (" + error.what() + "); install " + name);
  }
  return av_find_input_format("v4l2");
}

FormatPtr open_camera(const std::string& source, bool is_network) try {
  if (is_network) {
    avformat_network_init();
    return open_input(source, {{"timeout", kTimeout}, {"rtsp_transport", "tcp"}, {"fflags", "nobuffer"}});
  }
  const AVInputFormat* format = camera_format(source);
  if (!format) throw VideoError(source + " is a camera, and this FFmpeg reads none; install one that was built with v4l2");
  return open_input(source, {}, format);
} catch (const AvFailure& failure) {
  throw VideoError(source + " can't be watched (" + av_reason(failure.number) +
                   "); expected a video file, /dev/videoN or rtsp://…");
}

/// A camera can't repeat what was lost: damaged frames are left out, and those that may refer to them.
class Camera {
 public:
  Camera(const std::string& source, bool is_network) : source_(source), packet_(owned<PacketPtr>(av_packet_alloc())) {
    container_.format = open_camera(source, is_network);
    try {
      open_decoder(container_, source, false);
    } catch (const AvFailure& failure) {
      throw VideoError(source + " can't be decoded (" + av_reason(failure.number) + "); expected a video");
    }
  }

  const Container& container() const { return container_; }
  int64_t take_lost() { return lost_.exchange(0); }

  /// Null at the end.
  FramePtr next() {
    try {
      for (;;) {
        while (ready_.empty() && !ended_) decode_packet();
        if (ready_.empty()) return nullptr;
        FramePtr frame = std::move(ready_.front());
        ready_.pop_front();
        if (is_shown(*frame)) return frame;
      }
    } catch (const AvFailure& failure) {
      throw VideoError(source_ + " is gone (" + av_reason(failure.number) + "); watch it again");
    }
  }

 private:
  static constexpr double kRecovery = 10;  // seconds without a keyframe (intra refresh) after which frames are shown again

  bool is_shown(const AVFrame& frame) {
    if (is_corrupt(frame) || is_marked(frame)) {
      waited_ = waited_.value_or(0);
    } else if (is_keyframe(frame) || waited_.value_or(0) > kRecovery) {
      waited_.reset();
    }
    if (!waited_) return true;
    ++lost_;
    *waited_ += av_q2d(container_.interval());
    return false;
  }

  void decode_packet() {
    av_packet_unref(packet_.get());
    const int status = av_read_frame(container_.format.get(), packet_.get());
    if (status == AVERROR(EAGAIN)) return;
    if (status < 0 && status != AVERROR_EOF) throw AvFailure{status};
    ended_ = status == AVERROR_EOF;
    if (!ended_ && (packet_->stream_index != container_.stream->index || packet_->size == 0)) return;
    if (!ended_) mark(*container_.codec, *packet_, packet_->flags & AV_PKT_FLAG_CORRUPT);  // a part of it was lost
    try {
      std::deque<FramePtr> decoded = decode(*container_.codec, ended_ ? nullptr : packet_.get());
      std::move(decoded.begin(), decoded.end(), std::back_inserter(ready_));
    } catch (const AvFailure& failure) {
      if (failure.number != AVERROR_INVALIDDATA) throw;
      ++lost_;
      waited_ = waited_.value_or(0);
    }
  }

  std::string source_;
  Container container_;
  PacketPtr packet_;
  std::deque<FramePtr> ready_;
  bool ended_ = false;
  std::optional<double> waited_ = 0;  // seconds spent waiting for a keyframe; none: not waiting
  std::atomic<int64_t> lost_{0};
};

}  // namespace

struct VideoStream::Parts {
  std::string source;
  std::optional<Camera> camera;
  std::optional<Reader> file;  // decoded as a clip is, where damage is an error
  std::optional<RgbConverter> rgb;
  FramePtr frame;
  Clock clock;

  const Container& container() const { return camera ? camera->container() : file->container(); }
};

VideoStream::VideoStream(const std::string& source) : parts_(std::make_unique<Parts>()) {
  av_log_set_level(AV_LOG_QUIET);
  const bool is_network = source.find("://") != std::string::npos;
  if (is_network && !starts_with(source, "rtsp://") && !starts_with(source, "rtsps://")) {
    throw VideoError(source + " is not a kind of stream that can be watched; expected a video file, /dev/videoN or rtsp://…");
  }
  parts_->source = source;
  if (is_network || starts_with(source, "/dev/video")) {
    parts_->camera.emplace(source, is_network);
  } else {
    check_video_file(source);
    parts_->file.emplace(source, false);
  }
  parts_->rgb.emplace(parts_->container());
}

VideoStream::~VideoStream() = default;

bool VideoStream::is_live() const { return parts_->camera.has_value(); }

int64_t VideoStream::take_lost() { return parts_->camera ? parts_->camera->take_lost() : 0; }

bool VideoStream::next(double& seconds) {
  Parts& parts = *parts_;
  const Container& container = parts.container();
  const bool has_one_frame = container.picture && !container.picture->is_animated;
  parts.frame = has_one_frame && parts.clock.last() ? nullptr : parts.camera ? parts.camera->next() : parts.file->next();
  if (!parts.frame && !parts.clock.last()) throw no_frames(parts.source);
  if (!parts.frame) return false;
  std::optional<double> time;
  if (parts.frame->pts != AV_NOPTS_VALUE) time = seconds_of(parts.frame->pts, container.tick());
  seconds = parts.clock.seconds(time, is_keyframe(*parts.frame), av_q2d(container.interval()));
  return true;
}

Image VideoStream::image() { return parts_->rgb->convert(*parts_->frame); }

}  // namespace gridpool
