#include "av.hpp"

#include <set>

#include "text.hpp"

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

int64_t shown_ticks(const AVFrame& frame) {
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(57, 30, 100)
  return frame.duration;
#else
  return frame.pkt_duration;
#endif
}

std::pair<AVStream*, CodecPtr> open_decoder(AVFormatContext& format, const std::string& name) {
  std::set<std::string> kinds;
  for (unsigned i = 0; i < format.nb_streams; ++i) {
    AVStream* stream = format.streams[i];
    const char* kind = av_get_media_type_string(stream->codecpar->codec_type);
    kinds.insert(kind ? kind : "unknown");
    const AVCodec* decoder = avcodec_find_decoder(stream->codecpar->codec_id);
    if (stream->codecpar->codec_type != AVMEDIA_TYPE_VIDEO || stream->disposition & AV_DISPOSITION_ATTACHED_PIC || !decoder) continue;
    auto codec = owned<CodecPtr>(avcodec_alloc_context3(decoder));
    av_checked(avcodec_parameters_to_context(codec.get(), stream->codecpar));
    codec->pkt_timebase = stream->time_base;
    codec->thread_count = 0;  // as many as there are processors
    codec->thread_type = FF_THREAD_FRAME | FF_THREAD_SLICE;
    codec->err_recognition |= AV_EF_EXPLODE;  // damage is never concealed
    av_checked(avcodec_open2(codec.get(), decoder, nullptr));
    return {stream, std::move(codec)};
  }
  const std::string has = kinds.empty() ? "no stream" : join({kinds.begin(), kinds.end()}, ", ");
  throw VideoError(name + " has no video stream that can be decoded (it has " + has + "); expected a video");
}

}  // namespace gridpool
