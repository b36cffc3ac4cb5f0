#include "av.hpp"

namespace gridpool {

std::string av_reason(int number) {
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(number, text, sizeof text);
  return text;
}

int av_checked(int status) {
  if (status < 0) throw AvFailure{status};
  return status;
}

FormatPtr open_input(const std::string& url, const AvOptions& options, const AVInputFormat* format) {
  AVDictionary* dictionary = nullptr;
  for (const auto& [name, value] : options) av_dict_set(&dictionary, name.c_str(), value.c_str(), 0);
  AVFormatContext* context = nullptr;
  const int status = avformat_open_input(&context, url.c_str(), format, &dictionary);
  av_dict_free(&dictionary);
  av_checked(status);
  FormatPtr opened(context);
  av_checked(avformat_find_stream_info(context, nullptr));
  return opened;
}

int64_t shown_ticks(const AVFrame& frame) {
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(57, 30, 100)
  return frame.duration;
#else
  return frame.pkt_duration;
#endif
}

bool is_keyframe(const AVFrame& frame) {
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(58, 7, 100)
  return frame.flags & AV_FRAME_FLAG_KEY;
#else
  return frame.key_frame;
#endif
}

bool is_corrupt(const AVFrame& frame) { return frame.decode_error_flags != 0 || frame.flags & AV_FRAME_FLAG_CORRUPT; }

#if LIBAVCODEC_VERSION_MAJOR >= 60
void mark(AVCodecContext& codec, AVPacket& packet, bool is_marked) {
  codec.flags |= AV_CODEC_FLAG_COPY_OPAQUE;
  packet.opaque = is_marked ? &codec : nullptr;
}
bool is_marked(const AVFrame& frame) { return frame.opaque != nullptr; }
#else
void mark(AVCodecContext& codec, AVPacket&, bool is_marked) { codec.reordered_opaque = is_marked; }
bool is_marked(const AVFrame& frame) { return frame.reordered_opaque == 1; }
#endif

std::deque<FramePtr> decode(AVCodecContext& codec, const AVPacket* packet) {
  av_checked(avcodec_send_packet(&codec, packet));
  std::deque<FramePtr> frames;
  for (;;) {
    auto frame = owned<FramePtr>(av_frame_alloc());
    const int status = avcodec_receive_frame(&codec, frame.get());
    if (status == AVERROR(EAGAIN) || status == AVERROR_EOF) return frames;
    av_checked(status);
    frames.push_back(std::move(frame));
  }
}

}  // namespace gridpool
