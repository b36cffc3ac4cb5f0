#include "gif.hpp"

namespace gridpool {
namespace {

constexpr uint64_t kHeader = 13;  // bytes: signature and logical screen descriptor
constexpr uint64_t kExtension = 0x21, kFrame = 0x2C;

/// Bytes of the palette that a descriptor's flags announce.
uint64_t palette(uint64_t flags) { return flags & 0x80 ? uint64_t{3} << ((flags & 7) + 1) : 0; }

}  // namespace

std::optional<int64_t> gif_frames_before_cut(ByteSource& file) {
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
