// The last T frames of a stream as visual tokens: `push` a frame when it comes, `visual` whenever they are wanted.
//
// A frame of a split bundle is encoded once, when it is pushed, and its features are kept in a ring; asking then costs the
// compressor alone. Any other bundle keeps the frames and encodes all T of them every time. Memory does not grow with the
// stream. While fewer than T frames have come they are repeated evenly, as those of a short clip are. (runtime/vision/live.py)
//
// T frames, N visual tokens, D hidden.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "gridpool/chat.hpp"

namespace gridpool {

/// It must not outlive the encoder whose engine it uses. Not safe for two threads at once.
class GRIDPOOL_API LiveEncoder {
 public:
  explicit LiveEncoder(VisionEncoder& vision);
  ~LiveEncoder();

  /// Add a frame of any size, and drop the oldest if T are held; seconds: its time on the source's clock.
  void push(const Image& frame, double seconds);

  /// Visual tokens [N, D] of the last T frames, and which they are: indices count the frames that were pushed, from 0.
  /// VideoError before the first frame.
  VisualTokens visual();

  int64_t held() const;       ///< frames that are held, at most T
  bool encodes_once() const;  ///< whether a frame is encoded when it is pushed, and never again

 private:
  struct Ring;
  VisionEncoder& vision_;
  std::unique_ptr<Ring> ring_;
};

/// What `gridpool watch` reads: a file, a V4L2 device (/dev/video0) or a network stream (rtsp://…).
class GRIDPOOL_API VideoStream {
 public:
  /// VideoError if it can't be opened.
  explicit VideoStream(const std::string& source);
  ~VideoStream();

  /// The next frame's time in seconds after the first; false at the end. VideoError for damage.
  bool next(double& seconds);

  /// The pixels of the frame that `next` reached: only frames that are wanted are converted.
  Image image();

  /// Frames of a camera that arrived damaged or without the frames they refer to, and were left out since the last call.
  int64_t take_lost();

  bool is_live() const;  ///< whether the source sets the pace, and frames can't be asked for

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace gridpool
