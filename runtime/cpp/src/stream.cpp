// Frames as they come, from a file, a camera or the network: no seeking, no promise of how many there will be.
#include "gridpool/live.hpp"

#include "container.hpp"
#include "library.hpp"
#include "rgb.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

constexpr const char* kTimeout = "10000000";  // microseconds without a packet after which a network stream counts as gone

bool starts_with(const std::string& text, std::string_view start) { return text.compare(0, start.size(), start) == 0; }

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

FormatPtr open_source(const std::string& source, bool is_device, bool is_network) {
  AVDictionary* options = nullptr;
  const AVInputFormat* format = nullptr;
  std::string address = source;
  if (is_device) {
    format = camera_format(source);
    if (!format) throw VideoError(source + " is a camera, and this FFmpeg reads none; install one that was built with v4l2");
  } else if (is_network) {
    avformat_network_init();
    av_dict_set(&options, "timeout", kTimeout, 0);
    av_dict_set(&options, "rtsp_transport", "tcp", 0);
    av_dict_set(&options, "fflags", "nobuffer", 0);
  } else {
    check_video_file(source);
    av_dict_set(&options, "protocol_whitelist", "file", 0);
    address = "file:" + source;
  }
  AVFormatContext* context = nullptr;
  int status = avformat_open_input(&context, address.c_str(), format, &options);
  av_dict_free(&options);
  FormatPtr opened(status < 0 ? nullptr : context);
  if (status >= 0) status = avformat_find_stream_info(opened.get(), nullptr);
  if (status < 0) throw VideoError(source + " can't be watched (" + av_reason(status) + "); expected a video file, /dev/videoN or rtsp://…");
  return opened;
}

}  // namespace

struct VideoStream::Parts {
  std::string source;
  bool live = false;
  Container container;
  PacketPtr packet;
  FramePtr frame;
  std::unique_ptr<RgbConverter> rgb;
  bool ended = false, has_first = false;
  double first = 0, last = -1;

  bool decode_next();
};

VideoStream::VideoStream(const std::string& source) : parts_(std::make_unique<Parts>()) {
  av_log_set_level(AV_LOG_QUIET);
  const bool is_device = starts_with(source, "/dev/video");
  const bool is_network = source.find("://") != std::string::npos;
  if (is_network && !starts_with(source, "rtsp://") && !starts_with(source, "rtsps://")) {
    throw VideoError(source + " is no kind of stream that can be watched; expected a video file, /dev/videoN or rtsp://…");
  }
  parts_->source = source;
  parts_->live = is_device || is_network;
  parts_->container.format = open_source(source, is_device, is_network);
  try {
    open_decoder(parts_->container, source);
  } catch (const AvFailure& failure) {
    throw VideoError(source + " can't be decoded (" + av_reason(failure.number) + "); expected a video");
  }
  parts_->packet = owned<PacketPtr>(av_packet_alloc());
  parts_->frame = owned<FramePtr>(av_frame_alloc());
  parts_->rgb = std::make_unique<RgbConverter>(*parts_->container.stream);
}

VideoStream::~VideoStream() = default;

bool VideoStream::is_live() const { return parts_->live; }

bool VideoStream::Parts::decode_next() {
  for (;;) {
    const int status = avcodec_receive_frame(container.codec.get(), frame.get());
    if (status >= 0) return true;
    if (status == AVERROR_EOF) return false;
    if (status != AVERROR(EAGAIN) && !live) av_checked(status);  // a camera's next packet may be whole again
    do {
      av_packet_unref(packet.get());
      const int read = av_read_frame(container.format.get(), packet.get());
      if (read == AVERROR(EAGAIN)) continue;
      if (read < 0 && (live || read != AVERROR_EOF)) av_checked(read);
      if (read < 0) {
        if (ended) return false;
        ended = true;
        av_checked(avcodec_send_packet(container.codec.get(), nullptr));
        break;
      }
      if (packet->stream_index != container.stream->index || packet->size == 0) continue;
      const int sent = avcodec_send_packet(container.codec.get(), packet.get());
      if (sent < 0 && !live) av_checked(sent);
      if (sent >= 0) break;
    } while (true);
  }
}

bool VideoStream::next(double& seconds) {
  try {
    if (!parts_->decode_next()) return false;
  } catch (const AvFailure& failure) {
    if (parts_->live && failure.number == AVERROR_EOF) return false;
    throw VideoError(parts_->source + " is damaged or gone " + format("after %.2f s", std::max(0.0, parts_->last)) + " (" +
                     av_reason(failure.number) + "); watch it again");
  }
  const int64_t pts = parts_->frame->best_effort_timestamp;
  const AVRational rate = parts_->container.stream->avg_frame_rate;
  // A source without times counts frames.
  double time = pts != AV_NOPTS_VALUE ? static_cast<double>(pts) * av_q2d(parts_->container.stream->time_base)
                                      : parts_->last + (rate.num > 0 && rate.den > 0 ? av_q2d(av_inv_q(rate)) : 0.04) + parts_->first;
  if (!parts_->has_first) parts_->first = time, parts_->has_first = true;
  time -= parts_->first;
  seconds = parts_->last = std::max(time, parts_->last);
  return true;
}

Image VideoStream::image() {
  try {
    return parts_->rgb->convert(*parts_->frame);
  } catch (const AvFailure& failure) {
    throw VideoError(parts_->source + " has a frame that can't be converted (" + av_reason(failure.number) + ")");
  }
}

}  // namespace gridpool
