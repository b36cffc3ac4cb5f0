#include "picture.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

constexpr int kMostBlocks = 1 << 17;  // of a file, as a PNG of a gigabyte has
constexpr std::string_view kExif{"Exif\0\0", 6}, kXmp{"http://ns.adobe.com/xap/1.0/\0", 29};

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

enum class Kind { other, exif, xmp };

/// A segment or chunk of a picture's file; `end` is where the next one begins.
struct Block {
  Kind kind;
  uint64_t start, length, end;
};

/// The first EXIF orientation, else the first of XMP, in the blocks from `at`; `block_at` reads one, none at the last.
template <typename BlockAt>
std::optional<int> orientation_in(ByteSource& file, uint64_t at, BlockAt block_at) {
  std::optional<int> exif, xmp;
  for (int i = 0; i < kMostBlocks; ++i) {
    const std::optional<Block> block = block_at(at);
    if (!block) break;
    if (block->kind == Kind::exif && !exif) exif = exif_orientation(file.read(block->start, block->length));
    if (block->kind == Kind::xmp && !xmp) xmp = xmp_orientation(file.read(block->start, block->length));
    at = block->end;
  }
  return exif ? exif : xmp;
}

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
  return orientation_in(file, 2, [&](uint64_t at) -> std::optional<Block> {  // marker segments, up to the first scan
    const auto marker = file.number(at, 2), length = file.number(at + 2, 2);
    if (!marker || *marker >> 8 != 0xFF || *marker == 0xFFDA || *marker == 0xFFD9) return std::nullopt;
    if (*marker == 0xFFFF) return Block{Kind::other, at, 1, at + 1};  // a fill byte
    if (!length || *length < 2) return std::nullopt;
    const std::string head = *marker == 0xFFE1 ? file.read(at + 4, kXmp.size()) : "";
    const Kind kind = starts_with(head, kExif) ? Kind::exif : starts_with(head, kXmp) ? Kind::xmp : Kind::other;
    return Block{kind, at + 4, *length - 2, at + 2 + *length};
  });
}

std::optional<int> png_orientation(ByteSource& file) {
  return orientation_in(file, 8, [&](uint64_t at) -> std::optional<Block> {
    const auto length = file.number(at, 4);
    const std::string type = file.read(at + 4, 4);
    if (!length || type.size() < 4 || type == "IEND") return std::nullopt;
    const bool is_xmp = type == "iTXt" && file.read(at + 8, 18) == std::string("XML:com.adobe.xmp", 18);
    return Block{type == "eXIf" ? Kind::exif : is_xmp ? Kind::xmp : Kind::other, at + 8, *length, at + 12 + *length};
  });
}

std::optional<int> webp_orientation(ByteSource& file) {
  return orientation_in(file, 12, [&](uint64_t at) -> std::optional<Block> {
    const std::string type = file.read(at, 4);
    const auto length = file.number(at + 4, 4, Endian::little);
    if (!length) return std::nullopt;
    const Kind kind = type == "EXIF" ? Kind::exif : type == "XMP " ? Kind::xmp : Kind::other;
    return Block{kind, at + 8, *length, at + 8 + *length + *length % 2};
  });
}

}  // namespace gridpool
