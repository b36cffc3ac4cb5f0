#include "picture.hpp"

#include "text.hpp"

extern "C" {
#include <libavformat/avformat.h>
}

namespace gridpool {
namespace {

constexpr uint64_t kBlock = 1 << 20;  // bytes searched for a second JPEG picture, or for an animation's header
constexpr uint64_t kTiffCompression = 259;
constexpr unsigned kHeicVersion = 61;  // of libavformat, in FFmpeg 7.0

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& what) {
  throw VideoError(path.string() + " is " + what + "; use `python -m runtime`, which does, or save it as a JPEG or PNG");
}

/// Whether JPEG pictures follow each other, as in a .mjpeg file; a phone's second picture is announced by an MPF segment.
bool is_jpeg_stream(ByteSource& file) {
  const std::string start = file.read(0, kBlock);
  const size_t end = start.find("\xFF\xD9\xFF\xD8\xFF");
  return end != std::string::npos && start.substr(0, end).find(std::string("MPF\0", 4)) == std::string::npos;
}

bool is_animated_png(ByteSource& file) {
  const std::string start = file.read(0, kBlock);
  const size_t control = start.find("acTL");
  return control < start.find("IDAT") && number_at(start, control + 4, 4).value_or(0) > 1;
}

bool is_animated_webp(ByteSource& file) {
  constexpr uint64_t kAnimation = 2;
  return file.read(12, 4) == "VP8X" && file.number(20, 1).value_or(0) & kAnimation;
}

bool is_pnm(std::string_view head) {
  return head.size() > 2 && head[0] == 'P' && head[1] >= '1' && head[1] <= '6' && std::string_view(" \t\n\r\v\f").find(head[2]) < 6;
}

/// Bytes of the palette that the flags of a GIF's descriptor announce.
uint64_t palette(uint64_t flags) { return flags & 0x80 ? uint64_t{3} << ((flags & 7) + 1) : 0; }

}  // namespace

std::optional<Picture> read_picture(const std::filesystem::path& path) {
  ByteSource file(path);
  const std::string head = file.read(0, 12);
  const auto starts = [&](std::string_view start) { return starts_with(head, start); };
  if (starts("\xFF\xD8\xFF")) {
    if (is_jpeg_stream(file)) return std::nullopt;
    return Picture{Orientation::from_exif(jpeg_orientation(file))};
  }
  if (starts("\x89PNG\r\n\x1A\n")) return Picture{Orientation::from_exif(png_orientation(file)), is_animated_png(file)};
  if (starts("RIFF") && head.size() == 12 && head.substr(8) == "WEBP") {
    const bool is_animated = is_animated_webp(file);
    if (is_animated && !av_find_input_format("webp_anim")) refuse(path, "an animated WebP, which this FFmpeg does not read");
    return Picture{Orientation::from_exif(webp_orientation(file)), is_animated};
  }
  if (starts({"II*\0", 4}) || starts({"MM\0*", 4})) {
    const auto compression = tiff_number(file, kTiffCompression);
    if (compression == 6u || compression == 7u) refuse(path, "a TIFF with a JPEG inside, which FFmpeg reads in wrong colours");
    return Picture{Orientation::from_exif(tiff_orientation(file))};
  }
  if (starts({"II+\0", 4}) || starts({"MM\0+", 4})) refuse(path, "a BigTIFF, which FFmpeg does not read");
  if (starts("BM") || is_pnm(head)) return Picture{};
  const auto picture = heif_picture(file);
  if (!picture) return std::nullopt;
  if (picture->item != "av01" && picture->item != "hvc1") {
    refuse(path, "a picture assembled from others (" + picture->item + "), which the C++ runtime does not read");
  }
  if (!picture->is_first) refuse(path, "a file whose main picture is not its first, which the C++ runtime does not read");
  if (picture->item == "hvc1" && avformat_version() >> 16 < kHeicVersion) refuse(path, "a HEIC picture, which this FFmpeg does not read");
  return Picture{picture->orientation};
}

VideoError damaged_picture(const std::filesystem::path& path, const std::string& reason) {
  return VideoError(path.string() + " is damaged or not a picture (" + reason + "); copy it again");
}

std::optional<int64_t> gif_frames_before_cut(const std::filesystem::path& path) {
  constexpr uint64_t kHeader = 13, kExtension = 0x21, kFrame = 0x2C;  // bytes of signature and screen descriptor; kinds of blocks
  ByteSource file(path);
  const auto screen = file.number(10, 1);
  if (!screen) return 0;
  int64_t frames = 0;
  uint64_t at = kHeader + palette(*screen);
  for (;;) {
    const auto block = file.number(at, 1);
    if (block != kExtension && block != kFrame) return std::nullopt;
    const auto flags = file.number(at + 9, 1);
    if (block == kFrame && !flags) return frames;
    at += block == kFrame ? 11 + palette(*flags) : 2;  // with the byte before the pixels
    for (uint64_t length = 1; length > 0; at += length + (length > 0)) {
      const auto next = file.number(at, 1);
      if (!next) return frames;
      length = *next;
    }
    ++at;
    frames += block == kFrame;
  }
}

}  // namespace gridpool
