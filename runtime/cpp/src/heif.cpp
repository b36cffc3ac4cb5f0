#include "heif.hpp"

#include <functional>
#include <map>
#include <vector>

namespace gridpool {
namespace {

constexpr int kMostBoxes = 1 << 16;

/// A box's content, from the byte after its header.
struct Box {
  std::string type;
  uint64_t start = 0, end = 0;
};

/// The boxes between two places; what is cut off or nonsense ends the list.
std::vector<Box> boxes(ByteSource& file, uint64_t start, uint64_t end) {
  std::vector<Box> found;
  while (start < end && found.size() < kMostBoxes) {
    const auto size = file.number(start, 4);
    const std::string type = file.read(start + 4, 4);
    if (!size || type.size() < 4) break;
    uint64_t header = 8, length = *size;
    if (length == 1) header = 16, length = file.number(start + 8, 8).value_or(0);
    if (length == 0) length = end - start;
    if (length < header || length > end - start) break;
    found.push_back({type, start + header, start + length});
    start += length;
  }
  return found;
}

/// A cursor over big-endian numbers; reads zero past the end, and then has `ended`.
class Numbers {
 public:
  Numbers(ByteSource& file, const Box& box) : bytes_(file.read(box.start, box.end - box.start)) {}
  uint64_t next(size_t count) {
    const auto value = number_at(bytes_, at_, count);
    ended_ = ended_ || !value;
    at_ += count;
    return value.value_or(0);
  }
  bool ended() const { return ended_; }

 private:
  std::string bytes_;
  size_t at_ = 0;
  bool ended_ = false;
};

std::string four_characters(uint64_t code) {
  std::string text;
  for (int shift = 24; shift >= 0; shift -= 8) text += static_cast<char>(code >> shift & 0xFF);
  return text;
}

struct Items {
  std::optional<uint64_t> primary, first;
  std::map<uint64_t, std::string> types;

  void read_info(ByteSource& file, const Box& box) {
    const auto version = file.number(box.start, 1).value_or(0);
    for (const Box& entry : boxes(file, box.start + (version == 0 ? 6 : 8), box.end)) {
      Numbers numbers(file, entry);
      const uint64_t kind = numbers.next(4) >> 24;
      const uint64_t id = numbers.next(kind >= 3 ? 4 : 2);
      numbers.next(2);
      const uint64_t type = numbers.next(4);
      if (entry.type == "infe" && kind >= 2 && !numbers.ended()) types[id] = four_characters(type);
    }
  }

  void read_primary(ByteSource& file, const Box& box) {
    Numbers numbers(file, box);
    primary = numbers.next(numbers.next(4) >> 24 == 0 ? 2 : 4);
  }

  void read_first(ByteSource& file, const Box& box) {
    Numbers numbers(file, box);
    const uint64_t version = numbers.next(4) >> 24;
    numbers.next(2);  // sizes of fields
    if (numbers.next(version < 2 ? 2 : 4) > 0) first = numbers.next(version < 2 ? 2 : 4);
  }
};

/// The orientation of `item`: its properties in the order in which they are applied.
Orientation orientation_of(ByteSource& file, const Box& iprp, uint64_t item) {
  std::vector<Box> properties;
  Orientation orientation;
  for (const Box& part : boxes(file, iprp.start, iprp.end)) {
    if (part.type == "ipco") properties = boxes(file, part.start, part.end);
    if (part.type != "ipma") continue;
    Numbers numbers(file, part);
    const uint64_t head = numbers.next(4), version = head >> 24, wide = head & 1;
    for (uint64_t left = numbers.next(4); left > 0 && !numbers.ended(); --left) {
      const bool is_wanted = numbers.next(version < 1 ? 2 : 4) == item;
      for (uint64_t count = numbers.next(1); count > 0 && !numbers.ended(); --count) {
        const uint64_t index = wide ? numbers.next(2) & 0x7FFF : numbers.next(1) & 0x7F;
        if (!is_wanted || index == 0 || index > properties.size()) continue;
        const Box& property = properties[index - 1];
        const uint64_t value = file.number(property.start, 1).value_or(0);
        if (property.type == "irot") {  // counter-clockwise quarter turns
          for (uint64_t turn = 0; turn < (value & 3); ++turn) orientation = orientation.then({true, false, true});
        } else if (property.type == "imir") {  // 0: top and bottom are exchanged, 1: left and right
          orientation = orientation.then({false, (value & 1) == 1, (value & 1) == 0});
        }
      }
    }
  }
  return orientation;
}

bool holds_pictures(ByteSource& file, const std::vector<Box>& parts) {
  for (const Box& part : parts) {
    if (part.type == "hdlr") return file.read(part.start + 8, 4) == "pict";
  }
  return false;
}

}  // namespace

std::optional<HeifPicture> heif_picture(ByteSource& file) {
  if (file.read(4, 4) != "ftyp") return std::nullopt;
  std::optional<HeifPicture> picture;
  for (const Box& box : boxes(file, 0, file.size())) {
    if (box.type == "moov") return std::nullopt;  // a sequence: its track has all of that
    if (box.type != "meta" || picture) continue;
    const std::vector<Box> parts = boxes(file, box.start + 4, box.end);
    if (!holds_pictures(file, parts)) continue;
    Items items;
    for (const Box& part : parts) {
      if (part.type == "pitm") items.read_primary(file, part);
      if (part.type == "iinf") items.read_info(file, part);
      if (part.type == "iloc") items.read_first(file, part);
    }
    const uint64_t primary = items.primary.value_or(items.first.value_or(0));
    picture = HeifPicture{items.types[primary], items.first == primary, {}};
    for (const Box& part : parts) {
      if (part.type == "iprp") picture->orientation = orientation_of(file, part, primary);
    }
  }
  return picture;
}

}  // namespace gridpool
