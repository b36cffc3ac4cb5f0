#include "files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>
#include <vector>

extern "C" {
#include <libavutil/mem.h>
#include <libavutil/sha.h>
}

#include "gridpool/error.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

// Ctrl-C ends the process without unwinding; its handler finds the one temporary file here.
char open_temporary[4096];

class Sha256 {
 public:
  Sha256() : context_(av_sha_alloc(), av_free) {
    if (!context_) throw std::bad_alloc();
    av_sha_init(context_.get(), 256);
  }
  void add(const void* data, size_t size) { av_sha_update(context_.get(), static_cast<const uint8_t*>(data), size); }
  std::string hex() {
    uint8_t digest[32];
    av_sha_final(context_.get(), digest);
    std::string text;
    for (const uint8_t byte : digest) {
      text += "0123456789abcdef"[byte >> 4];
      text += "0123456789abcdef"[byte & 15];
    }
    return text;
  }

 private:
  std::unique_ptr<AVSHA, decltype(&av_free)> context_;
};

class Descriptor {
 public:
  explicit Descriptor(const fs::path& file) : number_(::open(file.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (number_ < 0) throw std::system_error(errno, std::generic_category(), file.string());
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(number_); }
  size_t read(void* to, size_t size) const {
    for (;;) {
      const ssize_t got = ::read(number_, to, size);
      if (got >= 0) return static_cast<size_t>(got);
      if (errno != EINTR) throw std::system_error(errno, std::generic_category(), "read");
    }
  }
  int number() const { return number_; }

 private:
  int number_;
};

}  // namespace

std::string sha256_of(std::string_view bytes) {
  Sha256 hash;
  hash.add(bytes.data(), bytes.size());
  return hash.hex();
}

std::string sha256_of_file(const fs::path& file) {
  const Descriptor source(file);
  Sha256 hash;
  std::vector<char> chunk(1 << 20);
  while (const size_t got = source.read(chunk.data(), chunk.size())) hash.add(chunk.data(), got);
  return hash.hex();
}

std::string read_file(const fs::path& file) {
  const Descriptor source(file);
  std::string content;
  std::vector<char> chunk(1 << 16);
  while (const size_t got = source.read(chunk.data(), chunk.size())) content.append(chunk.data(), got);
  return content;
}

MappedFile::MappedFile(const fs::path& file) {
  const Descriptor source(file);
  struct stat info {};
  if (::fstat(source.number(), &info) != 0) throw std::system_error(errno, std::generic_category(), file.string());
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, source.number(), 0);
  if (address == MAP_FAILED) throw std::system_error(errno, std::generic_category(), file.string());
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::MappedFile(MappedFile&& other) noexcept : data_(other.data_), size_(other.size_) {
  other.data_ = nullptr;
  other.size_ = 0;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

AtomicFile::AtomicFile(const fs::path& target) {
  std::error_code ignored;
  target_ = fs::weakly_canonical(fs::absolute(target), ignored);  // weakly_canonical leaves a relative name that does not exist relative
  if (target_.empty()) target_ = fs::absolute(target);
  if (fs::exists(target_, ignored) && !fs::is_regular_file(target_, ignored)) {
    throw OutputError(target_.string() + " is " + (fs::is_directory(target_, ignored) ? "a directory" : "not a regular file") +
                      "; choose another name for the output");
  }
  fs::path existing = target_.parent_path();
  while (!fs::exists(fs::symlink_status(existing, ignored)) && existing != existing.parent_path()) existing = existing.parent_path();
  if (!fs::is_directory(existing, ignored)) {
    throw OutputError(target_.string() + " can't be written: " + existing.string() + " is not a directory; choose another path");
  }
  if (::access(existing.c_str(), W_OK | X_OK) != 0) {
    throw OutputError(target_.string() + " can't be written: no permission to write in " + existing.string() + "; choose another path");
  }
  temporary_ = target_.parent_path() / ("." + target_.filename().string() + ".tmp-" + std::to_string(::getpid()));
  std::error_code failed;
  fs::create_directories(target_.parent_path(), failed);
  if (!failed) {
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) failed.assign(errno, std::generic_category());
  }
  if (failed) throw OutputError(target_.string() + " can't be written: " + failed.message() + "; choose another path");
  if (temporary_.native().size() < sizeof open_temporary) std::strcpy(open_temporary, temporary_.c_str());
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
  open_temporary[0] = '\0';
}

void AtomicFile::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::write(descriptor_, bytes.data(), bytes.size());
    if (done < 0 && errno != EINTR) fail(errno);
    if (done > 0) bytes.remove_prefix(static_cast<size_t>(done));
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0 && errno != EINVAL) fail(errno);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail(errno);
  ::close(descriptor_);
  descriptor_ = -1;
  open_temporary[0] = '\0';
}

void AtomicFile::drop_open_file() noexcept {
  if (open_temporary[0]) ::unlink(open_temporary);
}

void AtomicFile::fail(int number) const {
  throw OutputError(target_.string() + ": " + with_remedy(number) + "; existing files were not changed");
}

std::string with_remedy(int number) {
  const std::string reason = std::generic_category().message(number);
  switch (number) {
    case ENOSPC:
    case EDQUOT: return reason + "; free some space or choose another disk";
    case EFBIG: return reason + "; choose a file system (or a ulimit -f) that takes files of that size";
    case EACCES:
    case EPERM:
    case EROFS: return reason + "; choose another path or change its permissions";
    case EIO: return reason + "; check the disk";
    default: return reason + "; choose another path";
  }
}

}  // namespace gridpool
