#include "container.hpp"

#include <unistd.h>

#include <set>

#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

// Containers that hold one clip: no text drawn as video, no playlists that open other files.
constexpr const char* kFormats =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,mxf,nut,rm,wtv,dv,ivf,obu,h264,hevc,vvc,m4v,mpegvideo,mjpeg,"
    "yuv4mpegpipe,gif";
// For files that begin as a picture does; image2 goes by a file's name, and would draw an SVG.
constexpr const char* kPictureFormats =
    "apng,image2,png_pipe,jpeg_pipe,webp_pipe,webp_anim,bmp_pipe,tiff_pipe,ppm_pipe,pgm_pipe,pbm_pipe";

constexpr int kNotShown =
    AV_DISPOSITION_ATTACHED_PIC | AV_DISPOSITION_DEPENDENT | AV_DISPOSITION_STILL_IMAGE | AV_DISPOSITION_TIMED_THUMBNAILS;

bool is_video(const AVStream& stream) { return stream.codecpar->codec_type == AVMEDIA_TYPE_VIDEO; }

/// Whether the file is a sequence of pictures (ISO/IEC 23008-12), whose transparency is a separate video, after that of the colours.
bool is_picture_sequence(const AVFormatContext& format) {
  const AVDictionaryEntry* brand = av_dict_get(format.metadata, "major_brand", nullptr, 0);
  const std::string_view name = brand ? brand->value : "";
  return name == "avis" || name == "msf1" || name == "hevc" || name == "hevx";
}

/// FFmpeg's choice, and in a sequence of pictures the first of its size and length; if that is not for showing, the largest, those
/// flagged as default first. Null if there is none.
AVStream* best_stream(AVFormatContext& format) {
  const int best = av_find_best_stream(&format, AVMEDIA_TYPE_VIDEO, -1, -1, nullptr, 0);
  const bool is_sequence = best >= 0 && is_picture_sequence(format);
  const auto is_like = [](const AVStream& one, const AVStream& other) {
    return one.nb_frames == other.nb_frames && one.codecpar->width == other.codecpar->width &&
           one.codecpar->height == other.codecpar->height;
  };
  AVStream* chosen = nullptr;
  std::pair<bool, int64_t> highest{false, -1};
  for (unsigned i = 0; i < format.nb_streams; ++i) {
    AVStream* stream = format.streams[i];
    if (!is_video(*stream) || stream->disposition & kNotShown || !avcodec_find_decoder(stream->codecpar->codec_id)) continue;
    if (static_cast<int>(i) == best || (is_sequence && is_like(*stream, *format.streams[best]))) return stream;
    const std::pair<bool, int64_t> rank{(stream->disposition & AV_DISPOSITION_DEFAULT) != 0,
                                        int64_t{stream->codecpar->width} * stream->codecpar->height};
    if (rank > highest) highest = rank, chosen = stream;
  }
  return chosen;
}

[[noreturn]] void refuse_streams(const AVFormatContext& format, const std::string& name) {
  std::set<std::string> kinds;
  for (unsigned i = 0; i < format.nb_streams; ++i) {
    const AVStream& stream = *format.streams[i];
    if (is_video(stream) && stream.disposition & AV_DISPOSITION_ATTACHED_PIC) {
      throw VideoError(name + " has a cover picture but no video; expected a video");
    }
    const char* kind = av_get_media_type_string(stream.codecpar->codec_type);
    kinds.insert(kind ? kind : "unknown");
  }
  const std::string has = kinds.empty() ? "no stream" : join({kinds.begin(), kinds.end()});
  throw VideoError(name + " has no video stream that can be decoded (it has " + has + "); expected a video");
}

/// Of a video's frame, twice 8K: damaged headers may claim any size, and no such frame is allocated.
constexpr int64_t kMaxPixels = int64_t{1} << 26;

/// Whether a codec predicts nothing from other pictures, so that an error stays in the picture that has it.
bool is_intra_only(AVCodecID codec) {
  const AVCodecDescriptor* descriptor = avcodec_descriptor_get(codec);
  return descriptor && descriptor->props & AV_CODEC_PROP_INTRA_ONLY;
}

/// Whether frames may be decoded in parallel. FFmpeg 5.1 aborts the process if a decoder in such a thread fails after it promised a
/// frame, as those of MPEG-4 and WebP do on some damage; these make that promise last.
bool may_thread_frames(AVCodecID codec) {
  return codec == AV_CODEC_ID_H264 || codec == AV_CODEC_ID_HEVC || codec == AV_CODEC_ID_VP8 || codec == AV_CODEC_ID_VP9;
}

}  // namespace

AVRational Container::tick() const {
  return stream->time_base.num > 0 && stream->time_base.den > 0 ? stream->time_base : AVRational{1, 1000000};
}

bool Container::is_mov() const { return starts_with(format->iformat->name, "mov,"); }

AVRational Container::interval() const {
  const AVRational guess = av_guess_frame_rate(format.get(), stream, nullptr);
  return guess.num > 0 && guess.den > 0 ? av_inv_q(guess) : AVRational{1, 25};
}

void open_decoder(Container& container, const std::string& name, bool strict, bool threads) {
  container.stream = best_stream(*container.format);
  if (!container.stream) refuse_streams(*container.format, name);
  const AVCodecParameters& parameters = *container.stream->codecpar;
  const AVCodec* decoder = avcodec_find_decoder(parameters.codec_id);
  container.codec = owned<CodecPtr>(avcodec_alloc_context3(decoder));
  AVCodecContext& codec = *container.codec;
  av_checked(avcodec_parameters_to_context(&codec, &parameters));
  codec.pkt_timebase = container.stream->time_base;
  if (!container.picture) {
    codec.max_pixels = kMaxPixels;
    if (static_cast<int64_t>(parameters.width) * parameters.height > kMaxPixels) {
      throw VideoError(concat(name, " has frames of ", parameters.width, "x", parameters.height, "; expected at most ", kMaxPixels, " pixels a frame"));
    }
  }
  strict = strict || is_intra_only(parameters.codec_id);
  codec.thread_count = strict && threads ? 0 : 1;  // 0: as many as there are processors
  codec.thread_type = FF_THREAD_SLICE | (may_thread_frames(parameters.codec_id) ? FF_THREAD_FRAME : 0);
  // TIFF's decoder takes a tag that it does not know for an error.
  if (strict && parameters.codec_id != AV_CODEC_ID_TIFF) codec.err_recognition |= AV_EF_EXPLODE;
  av_checked(avcodec_open2(&codec, decoder, nullptr));
}

Container open_container(const fs::path& path, bool strict, bool threads) {
  Container container;
  container.picture = read_picture(path);
  const std::string formats = container.picture ? concat(kFormats, ",", kPictureFormats) : kFormats;
  try {
    const AvOptions options = {{"format_whitelist", formats}, {"protocol_whitelist", "file"}, {"pattern_type", "none"}};
    container.format = open_input("file:" + path.string(), options);
  } catch (const AvFailure& failure) {
    if (container.picture) throw damaged_picture(path, av_reason(failure.number));
    throw VideoError(path.string() + " is not a video, or not all of one (" + av_reason(failure.number) +
                     "); expected a file such as mp4, mkv or webm");
  }
  open_decoder(container, path.string(), strict, threads);
  return container;
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

}  // namespace gridpool
