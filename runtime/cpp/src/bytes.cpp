#include "bytes.hpp"

#include <algorithm>

namespace gridpool {
namespace {

constexpr uint64_t kLargestRead = 1 << 20;

}  // namespace

std::optional<uint64_t> number_at(std::string_view bytes, size_t offset, size_t count, Endian endian) {
  if (offset > bytes.size() || bytes.size() - offset < count) return std::nullopt;
  uint64_t value = 0;
  for (size_t i = 0; i < count; ++i) {
    value = value << 8 | static_cast<uint8_t>(bytes[offset + (endian == Endian::big ? i : count - 1 - i)]);
  }
  return value;
}

ByteSource::ByteSource(const std::filesystem::path& path) : file_(path, std::ios::binary) {
  std::error_code failed;
  const auto size = std::filesystem::file_size(path, failed);
  size_ = failed || !file_ ? 0 : size;
}

std::string ByteSource::read(uint64_t offset, uint64_t count) {
  if (offset >= size_) return {};
  const uint64_t length = std::min({count, kLargestRead, size_ - offset});
  if (!file_.is_open()) return bytes_.substr(offset, length);
  std::string bytes(length, '\0');
  file_.clear();
  file_.seekg(static_cast<std::streamoff>(offset));
  file_.read(bytes.data(), static_cast<std::streamsize>(length));
  bytes.resize(static_cast<size_t>(std::max<std::streamsize>(0, file_.gcount())));
  return bytes;
}

}  // namespace gridpool
