#include "picture.hpp"

extern "C" {
#include <libavformat/avformat.h>
}

#include "bytes.hpp"
#include "exif.hpp"
#include "heif.hpp"

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

Picture picture_of(const std::string& format, std::optional<int> orientation, bool is_animated = false) {
  return {format, Orientation::from_exif(orientation.value_or(1)), is_animated};
}

}  // namespace

std::optional<Picture> read_picture(const std::filesystem::path& path) {
  ByteSource file(path);
  const std::string head = file.read(0, 12);
  const auto starts = [&](std::string_view start) { return std::string_view(head).substr(0, start.size()) == start; };
  if (starts("\xFF\xD8\xFF")) {
    if (is_jpeg_stream(file)) return std::nullopt;
    return picture_of("JPEG", jpeg_orientation(file));
  }
  if (starts("\x89PNG\r\n\x1A\n")) return picture_of("PNG", png_orientation(file), is_animated_png(file));
  if (starts("RIFF") && head.size() == 12 && head.substr(8) == "WEBP") {
    const bool is_animated = is_animated_webp(file);
    if (is_animated && !av_find_input_format("webp_anim")) refuse(path, "an animated WebP, which this FFmpeg does not read");
    return picture_of("WebP", webp_orientation(file), is_animated);
  }
  if (starts({"II*\0", 4}) || starts({"MM\0*", 4})) {
    const auto compression = tiff_number(file, kTiffCompression);
    if (compression == 6u || compression == 7u) refuse(path, "a TIFF with a JPEG inside, which FFmpeg reads in wrong colours");
    return picture_of("TIFF", tiff_orientation(file));
  }
  if (starts({"II+\0", 4}) || starts({"MM\0+", 4})) refuse(path, "a BigTIFF, which FFmpeg does not read");
  if (starts("BM")) return picture_of("BMP", std::nullopt);
  if (is_pnm(head)) return picture_of("PNM", std::nullopt);
  const auto picture = heif_picture(file);
  if (!picture) return std::nullopt;
  if (picture->item != "av01" && picture->item != "hvc1") {
    refuse(path, "a picture put together from others (" + picture->item + "), which the C++ runtime does not do");
  }
  if (!picture->is_first) refuse(path, "a file whose main picture is not its first, which the C++ runtime does not read");
  if (picture->item == "hvc1" && avformat_version() >> 16 < kHeicVersion) refuse(path, "a HEIC picture, which this FFmpeg does not read");
  return Picture{picture->item == "av01" ? "AVIF" : "HEIC", picture->orientation, false};
}

VideoError damaged_picture(const std::filesystem::path& path, const std::string& reason) {
  return VideoError(path.string() + " is damaged or not a picture (" + reason + "); copy it again");
}

}  // namespace gridpool
