// A media file opened with FFmpeg, and the video stream in it that is shown (runtime/media/container.py).
#pragma once

#include "av.hpp"
#include "picture.hpp"

namespace gridpool {

/// An open file or stream with its decoder.
struct Container {
  FormatPtr format;
  AVStream* stream = nullptr;
  CodecPtr codec;
  std::optional<Picture> picture;  // for the file of a still picture

  AVRational tick() const;  ///< seconds; FFmpeg's default unit for a stream that names none
  AVRational rate() const { return stream->avg_frame_rate; }
  bool is_mov() const;

  /// Whether strict decoding may fail at what is not shown: references that a picture doesn't need.
  bool warns() const { return stream->codecpar->codec_id == AV_CODEC_ID_H264; }

  /// Seconds from a frame to the next as FFmpeg guesses it, 1/25 if it can't. The average rate of a raw stream may be 25
  /// whatever is in its headers.
  AVRational interval() const;
};

/// Open a file. The file protocol alone is allowed: neither a path that looks like an address nor a reference in the file opens
/// anything else. VideoError for what is not a video or a picture, or has none that can be decoded; AvFailure as below.
Container open_container(const std::filesystem::path& path, bool strict = true, bool threads = true);

/// The stream that is shown, and its opened decoder: the one that FFmpeg calls the best; a cover picture, a tile, or a strip of
/// thumbnails never is. VideoError, with `name` in it, if there is none; AvFailure if its decoder can't be opened.
/// strict: stop at everything that looks like an error. Unless it is, or without `threads`, one thread decodes, because FFmpeg's decoders
/// with threads may hand a frame out before they flag it as corrupt.
void open_decoder(Container& container, const std::string& name, bool strict = true, bool threads = true);

}  // namespace gridpool
