// Packets to frames: where decoding may begin, where a file was joined from several, and what counts as damage
// (runtime/media/decode.py, which says why).
#pragma once

#include <deque>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "container.hpp"

namespace gridpool {

/// The error for damage `seconds` after the first frame; none: at the first frame.
VideoError damage(const std::filesystem::path& path, std::optional<double> seconds, const std::string& reason);

/// Whether the decoder could not read all of a frame's data.
bool is_corrupt(const AVFrame& frame);

/// An open file; decodes from where it stands.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& path);

  const Container& container() const { return container_; }

  /// Refuse a file that ends before the frames that its own index lists; the demuxer would just stop there.
  void check_length() const;

  /// Refuse an AVI whose index lists more packets than the `sizes` of those that were read: the demuxer skips what it can't read.
  void check_index(const std::vector<int>& sizes) const;

  /// The next packet of the video stream that is not empty; null at the end. VideoError where packets are missing or
  /// incomplete, but for the last one of the file, which is left out; AvFailure where reading fails.
  AVPacket* read();

  /// Whether the packets so far ended inside one, which was left out.
  bool is_cut() const { return cut_; }

  /// The next frame in the order of showing; null at the end. Starts at the first keyframe from where the file stands.
  FramePtr next();

  /// Seek to the keyframe at `key`; where that overshoots, to one of those `earlier`.
  void seek(int64_t key, const std::vector<int64_t>& earlier);

 private:
  void enter(const AVPacket& key);
  void decode(const AVPacket* packet);
  PacketPtr demuxed();

  std::filesystem::path path_;
  Container container_;
  std::deque<PacketPtr> ahead_;  // the packet in hand and the two after it
  bool demuxed_all_ = false, has_packet_ = false, cut_ = false;
  std::optional<int64_t> first_;  // of the first keyframe, AV_NOPTS_VALUE where it has no time
  std::deque<FramePtr> ready_;
  int64_t entry_ = AV_NOPTS_VALUE;
  bool entered_ = false, ended_ = false, leading_ = true;
};

}  // namespace gridpool
