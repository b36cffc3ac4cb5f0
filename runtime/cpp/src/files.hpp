// Files: hashed, mapped, and written so that no reader sees an incomplete one.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace gridpool {

/// Hex SHA-256 of bytes, or of a file (std::system_error if it can't be read).
std::string sha256_of(std::string_view bytes);
std::string sha256_of_file(const std::filesystem::path& file);

/// The contents of a file; std::system_error if it can't be read.
std::string read_file(const std::filesystem::path& file);

/// A file of bytes mapped for reading: only what is touched is read.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& file);
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  std::shared_ptr<const std::byte> data_;
  size_t size_ = 0;
};

/// A temporary file beside `target`, which `commit` flushes to disk and renames; dropped otherwise, also by Ctrl-C.
/// OutputError, before anything is done, if `target` can't be written.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& target);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();
  void write(std::string_view bytes);
  void commit();

  /// Remove the temporary file of an AtomicFile that is open now; safe to call from a signal handler.
  static void drop_open_file() noexcept;

 private:
  [[noreturn]] void fail(int number) const;  // number: an errno
  std::filesystem::path target_, temporary_;
  int descriptor_ = -1;
};

}  // namespace gridpool
