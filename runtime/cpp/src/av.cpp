#include "av.hpp"

#include <cmath>
#include <cstring>
#include <set>

extern "C" {
#include <libavutil/display.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
}

#include "text.hpp"

namespace gridpool {
namespace {

/// The matrix by which the container says to turn the stream's frames, where the decoder did not pass it on.
const int32_t* stream_matrix(const AVStream& stream) {
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(60, 31, 100)
  const AVPacketSideData* data = av_packet_side_data_get(stream.codecpar->coded_side_data, stream.codecpar->nb_coded_side_data,
                                                         AV_PKT_DATA_DISPLAYMATRIX);
  return data ? reinterpret_cast<const int32_t*>(data->data) : nullptr;
#else
  return reinterpret_cast<const int32_t*>(av_stream_get_side_data(&stream, AV_PKT_DATA_DISPLAYMATRIX, nullptr));
#endif
}

Image turned(const Image& image, int turns) {  // counter-clockwise quarter turns
  if (turns == 0) return image;
  Image result;
  result.height = turns % 2 ? image.width : image.height;
  result.width = turns % 2 ? image.height : image.width;
  result.pixels.resize(image.pixels.size());
  uint8_t* out = result.pixels.data();
  for (int y = 0; y < result.height; ++y) {
    for (int x = 0; x < result.width; ++x, out += 3) {
      const int row = turns == 1 ? x : turns == 2 ? image.height - 1 - y : image.height - 1 - x;
      const int column = turns == 1 ? image.width - 1 - y : turns == 2 ? image.width - 1 - x : y;
      std::memcpy(out, &image.pixels[(static_cast<size_t>(row) * static_cast<size_t>(image.width) + static_cast<size_t>(column)) * 3], 3);
    }
  }
  return result;
}

}  // namespace

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

int RgbConverter::quarter_turns(const AVFrame& frame) const {
  const AVFrameSideData* data = av_frame_get_side_data(&frame, AV_FRAME_DATA_DISPLAYMATRIX);
  const int32_t* matrix = data ? reinterpret_cast<const int32_t*>(data->data) : stream_matrix(stream_);
  const double degrees = matrix ? av_display_rotation_get(matrix) : 0.0;
  if (!std::isfinite(degrees)) return 0;
  return (static_cast<int>(std::nearbyint(std::trunc(degrees) / 90)) % 4 + 4) % 4;
}

void RgbConverter::prepare(const AVFrame& frame) {
  const Look look{frame.width, frame.height, frame.format, frame.colorspace, frame.color_range, frame.chroma_location};
  if (scaler_ && look == look_) return;
  look_ = look;
  scaler_ = owned<ScalerPtr>(sws_alloc_context());
  const auto set = [&](const char* name, int64_t value) { av_checked(av_opt_set_int(scaler_.get(), name, value, 0)); };
  set("srcw", frame.width), set("srch", frame.height), set("src_format", frame.format);
  set("dstw", frame.width), set("dsth", frame.height), set("dst_format", AV_PIX_FMT_RGB24);
  set("sws_flags", SWS_BICUBIC);  // what FFmpeg 8 takes for chroma, whatever filter it is told
  // Where chroma samples lie among the luma ones: by default left, as in MPEG-2 and H.264. Releases before 7.1 of
  // FFmpeg leave that to their caller.
  const AVPixFmtDescriptor* layout = av_pix_fmt_desc_get(static_cast<AVPixelFormat>(frame.format));
  const int place = frame.chroma_location == AVCHROMA_LOC_UNSPECIFIED ? AVCHROMA_LOC_LEFT : frame.chroma_location;
  if (layout && layout->log2_chroma_w) set("src_h_chr_pos", (place - 1) % 2 * 128);
  if (layout && layout->log2_chroma_h) set("src_v_chr_pos", place <= AVCHROMA_LOC_CENTER ? 128 : place <= AVCHROMA_LOC_TOP ? 0 : 256);
  av_checked(sws_init_context(scaler_.get(), nullptr, nullptr));
  const bool full = frame.color_range == AVCOL_RANGE_JPEG;
  sws_setColorspaceDetails(scaler_.get(), sws_getCoefficients(frame.colorspace), full, sws_getCoefficients(SWS_CS_DEFAULT), 1, 0,
                           1 << 16, 1 << 16);
}

Image RgbConverter::convert(const AVFrame& frame) {
  const auto format = static_cast<AVPixelFormat>(frame.format);
  if (frame.width < 1 || frame.height < 1 || format == AV_PIX_FMT_NONE) throw AvFailure{AVERROR_INVALIDDATA};
  prepare(frame);
  // swscale writes whole vectors: rows are padded, and copied out without the padding.
  const int stride = (frame.width * 3 + 63) / 64 * 64 + 64;
  std::unique_ptr<uint8_t, decltype(&av_free)> padded(
      static_cast<uint8_t*>(av_malloc(static_cast<size_t>(stride) * static_cast<size_t>(frame.height) + 64)), av_free);
  if (!padded) throw std::bad_alloc();
  uint8_t* planes[4] = {padded.get(), nullptr, nullptr, nullptr};
  const int strides[4] = {stride, 0, 0, 0};
  av_checked(sws_scale(scaler_.get(), frame.data, frame.linesize, 0, frame.height, planes, strides));
  Image image{frame.height, frame.width, {}};
  const size_t row = static_cast<size_t>(frame.width) * 3;
  image.pixels.resize(row * static_cast<size_t>(frame.height));
  for (int y = 0; y < frame.height; ++y) {
    std::memcpy(&image.pixels[static_cast<size_t>(y) * row], padded.get() + static_cast<size_t>(y) * static_cast<size_t>(stride), row);
  }
  return turned(image, quarter_turns(frame));
}

}  // namespace gridpool
