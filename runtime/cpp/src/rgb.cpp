#include "rgb.hpp"

extern "C" {
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
}

namespace gridpool {
namespace {

/// The display matrix of the stream, if the decoder did not attach it to the frame.
const int32_t* stream_matrix(const AVStream& stream) {
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(60, 31, 100)
  const AVPacketSideData* data = av_packet_side_data_get(stream.codecpar->coded_side_data, stream.codecpar->nb_coded_side_data,
                                                         AV_PKT_DATA_DISPLAYMATRIX);
  return data && data->size >= 9 * sizeof(int32_t) ? reinterpret_cast<const int32_t*>(data->data) : nullptr;
#else
  size_t size = 0;
  const uint8_t* data = av_stream_get_side_data(&stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
  return data && size >= 9 * sizeof(int32_t) ? reinterpret_cast<const int32_t*>(data) : nullptr;
#endif
}

bool is_interlaced(const AVFrame& frame) {
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(58, 7, 100)
  return frame.flags & AV_FRAME_FLAG_INTERLACED;
#else
  return frame.interlaced_frame;
#endif
}

/// Whether luma runs from 0 to 255: as the frame's flags say, and always for grey, which has no other range.
bool has_full_range(const AVFrame& frame, const AVPixFmtDescriptor& layout) {
  return frame.color_range == AVCOL_RANGE_JPEG || layout.nb_components < 3;
}

/// Whether swscale knows the matrix of a frame's colours; older releases take another one for those that they don't know.
bool has_known_colours(const AVFrame& frame, const AVPixFmtDescriptor& layout) {
  if (layout.flags & (AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_BAYER) || layout.nb_components < 3) return true;
  switch (frame.colorspace) {
    case AVCOL_SPC_RGB:
    case AVCOL_SPC_BT709:
    case AVCOL_SPC_UNSPECIFIED:
    case AVCOL_SPC_FCC:
    case AVCOL_SPC_BT470BG:
    case AVCOL_SPC_SMPTE170M:
    case AVCOL_SPC_SMPTE240M:
    case AVCOL_SPC_BT2020_NCL: return true;
    default: return false;
  }
}

/// Where the first chroma sample is, in 256ths of a luma sample right of and below the first luma sample.
/// In the middle if unknown.
std::pair<int, int> chroma_position(AVChromaLocation location, const AVPixFmtDescriptor& layout) {
  const int place = location == AVCHROMA_LOC_UNSPECIFIED ? AVCHROMA_LOC_CENTER : location;
  const int x = (place - 1) % 2 * 128, y = place <= AVCHROMA_LOC_CENTER ? 128 : place <= AVCHROMA_LOC_TOP ? 0 : 256;
  return {x * ((1 << layout.log2_chroma_w) - 1), y * ((1 << layout.log2_chroma_h) - 1)};
}

/// An empty frame of the same size and range, its rows padded, because swscale writes complete vectors.
FramePtr frame_like(const AVFrame& frame, AVPixelFormat format) {
  auto result = owned<FramePtr>(av_frame_alloc());
  av_checked(av_frame_copy_props(result.get(), &frame));
  result->width = frame.width, result->height = frame.height, result->format = format;
  result->chroma_location = AVCHROMA_LOC_UNSPECIFIED;
  av_checked(av_frame_get_buffer(result.get(), 64));
  return result;
}

}  // namespace

Orientation RgbConverter::orientation(const AVFrame& frame) const {
  if (container_.picture) return container_.picture->orientation;
  const AVFrameSideData* data = av_frame_get_side_data(&frame, AV_FRAME_DATA_DISPLAYMATRIX);
  const int32_t* matrix = data ? reinterpret_cast<const int32_t*>(data->data) : stream_matrix(*container_.stream);
  return matrix ? Orientation::from_matrix(matrix) : Orientation{};
}

int RgbConverter::rows_of(const AVFrame& frame, Part part) {
  return part == top_field ? (frame.height + 1) / 2 : part == bottom_field ? frame.height / 2 : frame.height;
}

SwsContext& RgbConverter::scaler(const AVFrame& frame, Part part) {
  Scaler& scaler = scalers_[part];
  const AVPixFmtDescriptor* layout = av_pix_fmt_desc_get(static_cast<AVPixelFormat>(frame.format));
  const int rows = rows_of(frame, part);
  const Layout wanted{frame.width, rows, frame.format, frame.colorspace, frame.color_range, frame.chroma_location};
  if (scaler.context && wanted == scaler.layout) return *scaler.context;
  scaler.context = owned<decltype(scaler.context)>(sws_alloc_context());
  const auto set = [&](const char* name, int64_t value) { av_checked(av_opt_set_int(scaler.context.get(), name, value, 0)); };
  set("srcw", frame.width), set("srch", rows), set("src_format", frame.format);
  set("dstw", frame.width), set("dsth", rows), set("dst_format", part == chroma ? AV_PIX_FMT_YUV444P : AV_PIX_FMT_RGB24);
  set("sws_flags", container_.picture ? SWS_BILINEAR | SWS_FULL_CHR_H_INT | SWS_ACCURATE_RND : SWS_BICUBIC);
  auto [x, y] = chroma_position(frame.chroma_location, *layout);
  if (part == top_field || part == bottom_field) {  // a field's rows are two rows apart, and chroma is beside those of the top field
    if (part == bottom_field) y += 256 * ((1 << layout->log2_chroma_h) - 1);
    y /= 2;
  }
  if (layout->log2_chroma_w) set("src_h_chr_pos", x);
  if (layout->log2_chroma_h) set("src_v_chr_pos", y);
  av_checked(sws_init_context(scaler.context.get(), nullptr, nullptr));
  const bool full = has_full_range(frame, *layout);
  sws_setColorspaceDetails(scaler.context.get(), sws_getCoefficients(frame.colorspace), full, sws_getCoefficients(SWS_CS_DEFAULT),
                           part == chroma ? full : 1, 0, 1 << 16, 1 << 16);
  scaler.layout = wanted;
  return *scaler.context;
}

void RgbConverter::scale(const AVFrame& frame, Part part, AVFrame& result) {
  SwsContext& context = scaler(frame, part);
  const bool is_palette = av_pix_fmt_desc_get(static_cast<AVPixelFormat>(frame.format))->flags & AV_PIX_FMT_FLAG_PAL;
  const bool is_field = part == top_field || part == bottom_field;
  const uint8_t* data[4];
  int strides[4];
  for (int i = 0; i < 4; ++i) {
    const bool has_fields = is_field && !(is_palette && i == 1);
    data[i] = frame.data[i] && has_fields && part == bottom_field ? frame.data[i] + frame.linesize[i] : frame.data[i];
    strides[i] = has_fields ? frame.linesize[i] * 2 : frame.linesize[i];
  }
  uint8_t* planes[4] = {result.data[0] + (part == bottom_field ? result.linesize[0] : 0), result.data[1], result.data[2], nullptr};
  const int out[4] = {result.linesize[0] * (is_field ? 2 : 1), result.linesize[1], result.linesize[2], 0};
  av_checked(sws_scale(&context, data, strides, 0, rows_of(frame, part), planes, out));
}

Image RgbConverter::convert(const AVFrame& frame) {
  try {
    return oriented(converted(frame), orientation(frame));
  } catch (const AvFailure& failure) {
    throw VideoError("a frame can't be converted to RGB (" + av_reason(failure.number) + "); convert the video to another colour space");
  }
}

/// As it is stored.
Image RgbConverter::converted(const AVFrame& frame) {
  const AVPixFmtDescriptor* layout = av_pix_fmt_desc_get(static_cast<AVPixelFormat>(frame.format));
  if (frame.width < 1 || frame.height < 1 || !layout) throw AvFailure{AVERROR_INVALIDDATA};
  if (!has_known_colours(frame, *layout)) throw AvFailure{AVERROR(EOPNOTSUPP)};
  if (container_.picture && layout->log2_chroma_h) {  // FFmpeg's releases before 7.1 convert with the nearest row of chroma
    const FramePtr full = frame_like(frame, AV_PIX_FMT_YUV444P);
    scale(frame, chroma, *full);
    return converted(*full);
  }
  const FramePtr rgb = frame_like(frame, AV_PIX_FMT_RGB24);
  // swscale may copy a row of RGB with the padding after it, which is the other field's; RGB needs no conversion by field anyway.
  const bool by_field = is_interlaced(frame) && frame.height > 1 && !(layout->flags & AV_PIX_FMT_FLAG_RGB);
  for (const Part part : by_field ? std::vector{top_field, bottom_field} : std::vector{full_frame}) scale(frame, part, *rgb);
  Image image{frame.height, frame.width, {}};
  for (int y = 0; y < frame.height; ++y) {
    const uint8_t* row = rgb->data[0] + static_cast<std::ptrdiff_t>(y) * rgb->linesize[0];
    image.pixels.insert(image.pixels.end(), row, row + frame.width * 3);
  }
  return image;
}

}  // namespace gridpool
