// Bytes of an untrusted file: every read is bounded, and one outside the file returns nothing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>

namespace gridpool {

enum class Endian { big, little };

/// The unsigned number of `count` (1 to 8) bytes at `offset`; none if `bytes` ends before.
std::optional<uint64_t> number_at(std::string_view bytes, size_t offset, size_t count, Endian endian = Endian::big);

/// A file, or bytes in memory, read at any offset.
class ByteSource {
 public:
  /// Every read is empty if the file can't be opened.
  explicit ByteSource(const std::filesystem::path& path);
  explicit ByteSource(std::string bytes) : bytes_(std::move(bytes)), size_(bytes_.size()) {}

  uint64_t size() const { return size_; }

  /// Up to `count` bytes from `offset`, never more than a megabyte; fewer at the end of the source.
  std::string read(uint64_t offset, uint64_t count);

  std::optional<uint64_t> number(uint64_t offset, size_t count, Endian endian = Endian::big) {
    return number_at(read(offset, count), 0, count, endian);
  }

 private:
  std::ifstream file_;
  std::string bytes_;
  uint64_t size_ = 0;
};

}  // namespace gridpool
