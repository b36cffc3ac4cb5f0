// The boxes of MP4, HEIC and AVIF files.
#include <algorithm>
#include <utility>
#include <vector>

#include "picture.hpp"

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

/// The first of a type, null if there is none.
const Box* find(const std::vector<Box>& boxes, const std::string& type) {
  const auto found = std::find_if(boxes.begin(), boxes.end(), [&](const Box& box) { return box.type == type; });
  return found == boxes.end() ? nullptr : &*found;
}

uint64_t version_of(ByteSource& file, const Box& box) { return file.number(box.start, 1).value_or(0); }

/// The orientation of `item`: its properties in the order in which they are applied.
Orientation orientation_of(ByteSource& file, const Box& iprp, uint64_t item) {
  constexpr int kCounterClockwise[] = {1, 8, 3, 6};  // EXIF's numbers of quarter turns
  std::vector<Box> properties;
  Orientation orientation;
  for (const Box& part : boxes(file, iprp.start, iprp.end)) {
    if (part.type == "ipco") properties = boxes(file, part.start, part.end);
    if (part.type != "ipma") continue;
    const std::string bytes = file.read(part.start, part.end - part.start);
    size_t at = 0;  // numbers past the end are zero
    const auto next = [&](size_t count) { return number_at(bytes, std::exchange(at, at + count), count).value_or(0); };
    const uint64_t head = next(4), version = head >> 24, wide = head & 1;
    for (uint64_t left = next(4); left > 0 && at < bytes.size(); --left) {
      const bool is_wanted = next(version < 1 ? 2 : 4) == item;
      for (uint64_t count = next(1); count > 0; --count) {
        const uint64_t index = wide ? next(2) & 0x7FFF : next(1) & 0x7F;
        if (!is_wanted || index == 0 || index > properties.size()) continue;
        const Box& property = properties[index - 1];
        const uint64_t value = file.number(property.start, 1).value_or(0);
        if (property.type == "irot") orientation = orientation.then(Orientation::from_exif(kCounterClockwise[value & 3]));
        if (property.type == "imir") orientation = orientation.then(Orientation::from_exif(value & 1 ? 2 : 4));
      }
    }
  }
  return orientation;
}

HeifPicture picture_of(ByteSource& file, const std::vector<Box>& parts) {
  std::optional<uint64_t> primary, first;
  if (const Box* box = find(parts, "pitm")) primary = file.number(box->start + 4, version_of(file, *box) == 0 ? 2 : 4);
  if (const Box* box = find(parts, "iloc")) {  // after its head and the sizes of fields, the number of items and the first
    const size_t wide = version_of(file, *box) < 2 ? 2 : 4;
    if (file.number(box->start + 6, wide).value_or(0) > 0) first = file.number(box->start + 6 + wide, wide);
  }
  const uint64_t item = primary ? *primary : first.value_or(0);
  HeifPicture picture{"", first == item, {}};
  if (const Box* box = find(parts, "iinf")) {
    for (const Box& entry : boxes(file, box->start + (version_of(file, *box) == 0 ? 6 : 8), box->end)) {
      const uint64_t version = version_of(file, entry);
      const size_t wide = version >= 3 ? 4 : 2;
      if (entry.type != "infe" || version < 2 || file.number(entry.start + 4, wide) != item) continue;
      picture.item = file.read(entry.start + 6 + wide, 4);
    }
  }
  if (const Box* box = find(parts, "iprp")) picture.orientation = orientation_of(file, *box, item);
  return picture;
}

}  // namespace

std::optional<HeifPicture> heif_picture(ByteSource& file) {
  if (file.read(4, 4) != "ftyp") return std::nullopt;
  const std::vector<Box> all = boxes(file, 0, file.size());
  if (find(all, "moov")) return std::nullopt;  // a sequence: its track has all of that
  for (const Box& box : all) {
    if (box.type != "meta") continue;
    const std::vector<Box> parts = boxes(file, box.start + 4, box.end);
    const Box* handler = find(parts, "hdlr");
    if (handler && file.read(handler->start + 8, 4) == "pict") return picture_of(file, parts);
  }
  return std::nullopt;
}

bool is_fragmented(const std::filesystem::path& path) {
  ByteSource file(path);
  return find(boxes(file, 0, file.size()), "moof");
}

}  // namespace gridpool
