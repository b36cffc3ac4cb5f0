// Packets to frames: where decoding may begin, where a file was joined from several, and what counts as damage
// (runtime/media/decode.py explains why).
#pragma once

#include <deque>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "container.hpp"

namespace gridpool {

/// An error in a picture that is shown, or packets that are missing.
class DamageError : public VideoError {
 public:
  /// seconds: after the first frame; none at the first.
  DamageError(const std::filesystem::path& path, std::optional<double> seconds, const std::string& reason);
  const std::string& reason() const { return reason_; }

 private:
  std::string reason_;
};

/// An open file, decoded from its current position.
class Reader {
 public:
  /// strict: a warning of the decoder is damage too; else only what a frame's flags say, and one thread decodes.
  /// threads: whether a strict reader may decode in several threads.
  explicit Reader(const std::filesystem::path& path, bool strict = true, bool threads = true);

  const Container& container() const { return container_; }

  /// Refuse an mp4 that ends before the frames that its index lists; the demuxer would just stop there.
  void check_length() const;

  /// Refuse an AVI whose index lists packets between those that were read (their `sizes`): the demuxer skips what it can't read.
  void check_index(const std::vector<int>& sizes);

  /// The next packet of the video stream that is not empty; null at the end. DamageError if packets are missing or
  /// incomplete, except the last one of the file, which is left out, and if the demuxer finds what it can't read.
  AVPacket* read();

  /// Whether what was read so far ended inside a packet, whose picture was left out.
  bool is_cut() const { return cut_; }

  /// The next frame in presentation order; null at the end. Starts at the first keyframe after the current position.
  /// DamageError for what can't be decoded.
  FramePtr next();

  /// Seek to the keyframe at the first of these times; if that overshoots, to the next in the list.
  void seek(const std::vector<int64_t>& keys);

 private:
  PacketPtr demuxed();
  FramePtr decoded();
  bool is_at_joint() const;
  void enter(AVPacket& key);
  void decode(AVPacket* packet);
  void end();
  std::optional<double> seconds_since_key(const AVPacket& packet) const;

  std::filesystem::path path_;
  bool strict_;
  Container container_;
  std::optional<int64_t> whole_frames_;  // of a GIF that ends inside one
  int64_t read_ = 0;                     // packets, since decoding began
  std::deque<PacketPtr> ahead_;          // the packet in hand and the two after it
  bool demuxed_all_ = false, has_packet_ = false, cut_ = false;
  std::optional<int64_t> first_key_;               // its time, AV_NOPTS_VALUE if it has none
  std::optional<double> read_to_;                  // the packet before the one in hand: seconds after the first keyframe
  bool is_broken_ = false;                         // a packet was incomplete: the file may only end here
  std::optional<double> broken_at_;                // seconds after the first keyframe
  std::deque<FramePtr> ready_;
  int64_t decoded_ = 0;                            // frames, since decoding began
  std::vector<int64_t> sought_;                    // the last seek's keyframes; none if decoding began at the start
  int64_t entry_ = AV_NOPTS_VALUE;
  bool entered_ = false, ended_ = false, leading_ = true;
  std::optional<int64_t> first_time_;              // of the frames since decoding began
  std::optional<double> last_time_;                // seconds after that
};

}  // namespace gridpool
