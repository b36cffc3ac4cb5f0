#include "reader.hpp"

#include <algorithm>
#include <utility>

#include "text.hpp"
#include "timeline.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr size_t kWindow = 3;  // a packet and the two after it

bool is_key(const AVPacket& packet) { return packet.flags & AV_PKT_FLAG_KEY; }

}  // namespace

DamageError::DamageError(const fs::path& path, std::optional<double> seconds, const std::string& reason)
    : VideoError(path.string() + " is damaged " +
                 (seconds ? format("after %.2f s", std::max(0.0, *seconds)) : "at its first frame") + " (" + reason +
                 "); expected a file that plays to its end, copy it again"),
      reason_(reason) {}

Reader::Reader(const fs::path& path, bool strict, bool threads) try
    : path_(path), strict_(strict), container_(open_container(path, strict, threads)) {
  if (std::string_view(container_.format->iformat->name) == "gif") whole_frames_ = gif_frames_before_cut(path);
} catch (const AvFailure& failure) {
  throw DamageError(path, std::nullopt, av_reason(failure.number));
}

void Reader::check_length() const {
  if (!container_.is_mov() || is_fragmented(path_)) return;
  const auto length = static_cast<int64_t>(fs::file_size(path_));
  for (int i = 0; i < avformat_index_get_entries_count(container_.stream); ++i) {
    const AVIndexEntry* entry = avformat_index_get_entry(container_.stream, i);
    if (static_cast<Wide>(entry->pos) + entry->size > length) {
      const double at = seconds_of(std::max<int64_t>(0, entry->timestamp), container_.tick());
      throw VideoError(concat(path_.string(), " is cut off at ", format("%.2f", at), " s: it has ", length,
                              " bytes and its index lists more; copy it again"));
    }
  }
}

void Reader::check_index(const std::vector<int>& sizes) {
  if (std::string_view(container_.format->iformat->name) != "avi") return;
  std::vector<const AVIndexEntry*> listed;
  for (int i = 0; i < avformat_index_get_entries_count(container_.stream); ++i) {
    const AVIndexEntry* entry = avformat_index_get_entry(container_.stream, i);
    if (entry->size) listed.push_back(entry);
  }
  if (sizes.size() >= listed.size()) return;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == listed[i]->size) continue;
    const Wide at = static_cast<Wide>(listed[i]->timestamp) - listed.front()->timestamp;
    throw DamageError(path_, seconds_of(at, container_.tick()), "packets are missing or incomplete");
  }
  cut_ = true;
}

/// A packet of the video stream as the demuxer gives it; null at the end.
PacketPtr Reader::demuxed() {
  auto packet = owned<PacketPtr>(av_packet_alloc());
  for (;;) {
    const int status = av_read_frame(container_.format.get(), packet.get());
    if (status == AVERROR_EOF) return nullptr;
    if (status < 0) throw DamageError(path_, read_to_, av_reason(status));
    if (packet->stream_index == container_.stream->index && packet->size > 0) {
      if (whole_frames_ && read_ == *whole_frames_) return nullptr;
      ++read_;
      return packet;
    }
    av_packet_unref(packet.get());
  }
}

std::optional<double> Reader::seconds_since_key(const AVPacket& packet) const {
  if (!first_key_ || *first_key_ == AV_NOPTS_VALUE || packet.pts == AV_NOPTS_VALUE) return std::nullopt;
  return seconds_of(static_cast<Wide>(packet.pts) - *first_key_, container_.tick());
}

/// Whether the packet in hand is two before a keyframe, and either no picture in between is missing or a new clock begins there.
bool Reader::is_at_joint() const {
  if (ahead_.size() < kWindow || !is_key(*ahead_[2])) return false;
  const AVPacket &before = *ahead_[1], &key = *ahead_[2];
  if (before.dts == AV_NOPTS_VALUE || key.dts == AV_NOPTS_VALUE || before.duration == 0) return true;
  const Wide gap = static_cast<Wide>(key.dts) - before.dts;
  const AVRational tick = container_.tick();
  return !(2 * gap > 3 * static_cast<Wide>(before.duration) && gap * tick.num < tick.den);  // 1.5 durations to a second
}

AVPacket* Reader::read() {
  for (;;) {
    if (std::exchange(has_packet_, false)) {
      read_to_ = seconds_since_key(*ahead_.front());
      ahead_.pop_front();
    }
    while (ahead_.size() < kWindow && !demuxed_all_) {
      PacketPtr packet = demuxed();
      demuxed_all_ = !packet;
      if (packet) ahead_.push_back(std::move(packet));
    }
    if (ahead_.empty()) {
      cut_ = cut_ || is_broken_ || whole_frames_;
      return nullptr;
    }
    has_packet_ = true;
    AVPacket* packet = ahead_.front().get();
    if (av_packet_get_side_data(packet, AV_PKT_DATA_ENCRYPTION_INFO, nullptr)) {
      throw VideoError(path_.string() + " is encrypted; expected a video without copy protection");
    }
    const bool is_before_all = !first_key_ && ahead_.size() > 1;
    if (packet->flags & AV_PKT_FLAG_CORRUPT && !is_before_all && !is_at_joint()) {
      if (!is_broken_) is_broken_ = true, broken_at_ = seconds_since_key(*packet);
    } else if (is_broken_ && ahead_.size() == kWindow) {  // the file goes on
      throw DamageError(path_, broken_at_, "packets are missing or incomplete");
    } else if (!is_broken_) {
      if (is_key(*packet) && !first_key_) first_key_ = packet->pts;
      return packet;
    }
  }
}

FramePtr Reader::next() {
  try {
    for (;;) {
      FramePtr frame = decoded();
      if (!frame) return nullptr;
      if (is_corrupt(*frame) && is_marked(*frame)) {
        cut_ = true;
        continue;
      }
      if (is_corrupt(*frame)) throw DamageError(path_, last_time_, "a picture can't be decoded");
      if (frame->pts != AV_NOPTS_VALUE) {
        if (!first_time_) first_time_ = frame->pts;
        last_time_ = seconds_of(static_cast<Wide>(frame->pts) - *first_time_, container_.tick());
      }
      return frame;
    }
  } catch (const AvFailure& failure) {
    const bool may_be_large = failure.number == AVERROR(EINVAL) && !container_.picture;
    const std::string or_large = may_be_large ? concat(", or frames of more than ", container_.codec->max_pixels, " pixels") : "";
    throw DamageError(path_, last_time_, av_reason(failure.number) + or_large);
  }
}

FramePtr Reader::decoded() {
  while (ready_.empty() && !ended_) {
    AVPacket* packet = read();
    if (!packet && !entered_) return nullptr;
    if (!packet) {
      end();
      continue;
    }
    if (!entered_) {
      if (is_key(*packet)) enter(*packet);
      continue;
    }
    // What is shown before the keyframe but stored after it refers to frames not seen; nothing shown later refers to it.
    leading_ = leading_ && !is_key(*packet);
    const bool is_left_out = leading_ && packet->pts != AV_NOPTS_VALUE && entry_ != AV_NOPTS_VALUE && packet->pts < entry_;
    if (!is_left_out) decode(packet);
  }
  if (ready_.empty()) return nullptr;
  FramePtr frame = std::move(ready_.front());
  ready_.pop_front();
  return frame;
}

void Reader::seek(const std::vector<int64_t>& keys) try {
  sought_ = keys;
  for (const int64_t target : keys) {  // containers without an index (MPEG-TS) are searched by guess and may overshoot
    av_checked(av_seek_frame(container_.format.get(), container_.stream->index, target, AVSEEK_FLAG_BACKWARD));
    avcodec_flush_buffers(container_.codec.get());
    ready_.clear();
    ahead_.clear();
    first_key_.reset(), read_to_.reset(), first_time_.reset(), last_time_.reset();
    demuxed_all_ = has_packet_ = is_broken_ = ended_ = entered_ = false;
    read_ = decoded_ = 0;
    AVPacket* packet = read();
    while (packet && !is_key(*packet)) packet = read();
    if (packet && packet->pts != AV_NOPTS_VALUE && packet->pts <= keys.front()) return enter(*packet);
  }
  ended_ = entered_ = true;
} catch (const AvFailure& failure) {
  throw DamageError(path_, std::nullopt, av_reason(failure.number));
}

void Reader::enter(AVPacket& key) {
  entered_ = leading_ = true;
  entry_ = key.pts;
  decode(&key);
}

void Reader::decode(AVPacket* packet) {
  if (packet) mark(*container_.codec, *packet, ahead_.size() == 1);  // the file's last
  std::deque<FramePtr> frames = gridpool::decode(*container_.codec, packet);
  decoded_ += static_cast<int64_t>(frames.size());
  std::move(frames.begin(), frames.end(), std::back_inserter(ready_));
}

/// Frames that threads hold at the end come out without the flags that a decoder sets last: another reader decodes them, in one thread.
void Reader::end() {
  ended_ = true;
  if (!(container_.codec->active_thread_type & FF_THREAD_FRAME)) return decode(nullptr);
  Reader again(path_, strict_, false);
  if (!sought_.empty()) again.seek(sought_);
  for (int64_t i = 0; i < decoded_; ++i) again.decoded();
  while (FramePtr frame = again.decoded()) ready_.push_back(std::move(frame));
  cut_ = cut_ || again.is_cut();
}

}  // namespace gridpool
