// FFmpeg's objects with owners, and what its releases name differently (5.1 of Debian 12 to 8).
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libswscale/swscale.h>
}

#include "gridpool/video.hpp"

namespace gridpool {

template <auto release>
struct AvDeleter {
  template <typename T>
  void operator()(T* pointer) const {
    release(&pointer);
  }
};

using FormatPtr = std::unique_ptr<AVFormatContext, AvDeleter<avformat_close_input>>;
using CodecPtr = std::unique_ptr<AVCodecContext, AvDeleter<avcodec_free_context>>;
using FramePtr = std::unique_ptr<AVFrame, AvDeleter<av_frame_free>>;
using PacketPtr = std::unique_ptr<AVPacket, AvDeleter<av_packet_free>>;

/// `pointer`, or std::bad_alloc if it is null.
template <typename Owner>
Owner owned(typename Owner::pointer pointer) {
  if (!pointer) throw std::bad_alloc();
  return Owner(pointer);
}

/// An FFmpeg call that failed; the caller decides what that means.
struct AvFailure {
  int number;
};

/// FFmpeg's message for an error number.
std::string av_reason(int number);

/// `status`, or AvFailure if it is negative.
int av_checked(int status);

/// A file or stream whose headers were read; AvFailure if it can't be opened. format: none to find it out.
using AvOptions = std::map<std::string, std::string>;
FormatPtr open_input(const std::string& url, const AvOptions& options, const AVInputFormat* format = nullptr);

/// How long a frame is shown, in ticks of its stream; 0 if unknown.
int64_t shown_ticks(const AVFrame& frame);

/// Whether a frame is one that decoding may begin at.
bool is_keyframe(const AVFrame& frame);

/// Whether the decoder could not read all of a frame's data.
bool is_corrupt(const AVFrame& frame);

/// Put a mark on the frame that will come of a packet.
void mark(AVCodecContext& codec, AVPacket& packet, bool is_marked);
bool is_marked(const AVFrame& frame);

/// The frames that a packet, or null at the end, makes a decoder give; AvFailure, and no frame, if it can't be decoded.
std::deque<FramePtr> decode(AVCodecContext& codec, const AVPacket* packet);

}  // namespace gridpool
