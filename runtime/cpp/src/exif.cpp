#include "exif.hpp"

namespace gridpool {
namespace {

constexpr int kMostChunks = 1 << 17;  // of a file, as a PNG of a gigabyte has
constexpr std::string_view kExif{"Exif\0\0", 6}, kXmp{"http://ns.adobe.com/xap/1.0/\0", 29};

bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

std::optional<int> exif_orientation(std::string block) {
  if (starts_with(block, kExif)) block.erase(0, kExif.size());
  ByteSource tiff(std::move(block));
  return tiff_orientation(tiff);
}

constexpr uint64_t kShort = 3, kLong = 4;  // types

struct Entry {
  uint64_t type, count, value;
};

/// An entry of the first directory of a TIFF structure.
std::optional<Entry> entry_of(ByteSource& tiff, uint64_t tag) {
  constexpr size_t kEntry = 12;
  const std::string order = tiff.read(0, 2);
  if (order != "II" && order != "MM") return std::nullopt;
  const Endian endian = order == "II" ? Endian::little : Endian::big;
  const auto directory = tiff.number(4, 4, endian);
  if (tiff.number(2, 2, endian) != 42u || !directory) return std::nullopt;
  const std::string entries = tiff.read(*directory + 2, tiff.number(*directory, 2, endian).value_or(0) * kEntry);
  for (size_t at = 0; at + kEntry <= entries.size(); at += kEntry) {
    if (number_at(entries, at, 2, endian) != tag) continue;
    const uint64_t type = *number_at(entries, at + 2, 2, endian);
    return Entry{type, *number_at(entries, at + 4, 4, endian), *number_at(entries, at + 8, type == kShort ? 2 : 4, endian)};
  }
  return std::nullopt;
}

/// What is found first, of two places where an orientation may stand.
struct Found {
  std::optional<int> exif, xmp;
  std::optional<int> best() const { return exif ? exif : xmp; }
};

}  // namespace

std::optional<uint64_t> tiff_number(ByteSource& tiff, uint64_t tag) {
  const auto entry = entry_of(tiff, tag);
  return entry && (entry->type == kShort || entry->type == kLong) ? std::optional(entry->value) : std::nullopt;
}

std::optional<int> tiff_orientation(ByteSource& tiff) {
  constexpr uint64_t kOrientation = 0x0112, kXmpPacket = 700;
  if (const auto number = tiff_number(tiff, kOrientation)) return static_cast<int>(*number & 0xFFFF);
  const auto packet = entry_of(tiff, kXmpPacket);
  return packet ? xmp_orientation(tiff.read(packet->value, packet->count)) : std::nullopt;
}

std::optional<int> xmp_orientation(std::string_view xmp) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = xmp.find(kName); at != std::string_view::npos; at = xmp.find(kName, at + 1)) {
    std::string_view value = xmp.substr(at + kName.size());
    if (!starts_with(value, "=\"") && !starts_with(value, ">")) continue;
    value.remove_prefix(value[0] == '=' ? 2 : 1);
    if (!value.empty() && value[0] >= '0' && value[0] <= '9') return value[0] - '0';
  }
  return std::nullopt;
}

std::optional<int> jpeg_orientation(ByteSource& file) {
  Found found;
  uint64_t at = 2;
  for (int i = 0; i < kMostChunks; ++i) {  // marker segments, up to the first scan
    const auto marker = file.number(at, 2), length = file.number(at + 2, 2);
    if (!marker || *marker >> 8 != 0xFF || *marker == 0xFFDA || *marker == 0xFFD9) break;
    if (*marker == 0xFFFF) {  // a fill byte
      ++at;
      continue;
    }
    if (!length || *length < 2) break;
    if (*marker == 0xFFE1) {
      const std::string segment = file.read(at + 4, *length - 2);
      if (!found.exif && starts_with(segment, kExif)) found.exif = exif_orientation(segment);
      if (!found.xmp && starts_with(segment, kXmp)) found.xmp = xmp_orientation(segment);
    }
    at += 2 + *length;
  }
  return found.best();
}

std::optional<int> png_orientation(ByteSource& file) {
  Found found;
  uint64_t at = 8;
  for (int i = 0; i < kMostChunks; ++i) {
    const auto length = file.number(at, 4);
    const std::string type = file.read(at + 4, 4);
    if (!length || type.size() < 4 || type == "IEND") break;
    if (type == "eXIf") found.exif = exif_orientation(file.read(at + 8, *length));
    if (type == "iTXt" && file.read(at + 8, 18) == std::string("XML:com.adobe.xmp", 18)) found.xmp = xmp_orientation(file.read(at + 8, *length));
    at += 12 + *length;
  }
  return found.best();
}

std::optional<int> webp_orientation(ByteSource& file) {
  Found found;
  uint64_t at = 12;
  for (int i = 0; i < kMostChunks; ++i) {
    const std::string type = file.read(at, 4);
    const auto length = file.number(at + 4, 4, Endian::little);
    if (!length) break;
    if (type == "EXIF") found.exif = exif_orientation(file.read(at + 8, *length));
    if (type == "XMP ") found.xmp = xmp_orientation(file.read(at + 8, *length));
    at += 8 + *length + *length % 2;
  }
  return found.best();
}

}  // namespace gridpool
