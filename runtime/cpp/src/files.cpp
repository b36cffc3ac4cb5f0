#include "files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
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

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

File open_file(const fs::path& file) {
  File opened(std::fopen(file.c_str(), "rbe"), std::fclose);
  if (!opened) throw std::system_error(errno, std::generic_category(), file.string());
  return opened;
}

/// Hand the contents of a file on, a megabyte at a time.
template <typename Each>
void read_pieces(const fs::path& file, const Each& each) {
  const File opened = open_file(file);
  std::vector<char> piece(1 << 20);
  while (const size_t got = std::fread(piece.data(), 1, piece.size(), opened.get())) each(piece.data(), got);
  if (std::ferror(opened.get())) throw std::system_error(errno, std::generic_category(), file.string());
}

}  // namespace

std::string sha256_of(std::string_view bytes) {
  Sha256 hash;
  hash.add(bytes.data(), bytes.size());
  return hash.hex();
}

std::string sha256_of_file(const fs::path& file) {
  Sha256 hash;
  read_pieces(file, [&](const char* data, size_t size) { hash.add(data, size); });
  return hash.hex();
}

std::string read_file(const fs::path& file) {
  std::string content;
  read_pieces(file, [&](const char* data, size_t size) { content.append(data, size); });
  return content;
}

MappedFile::MappedFile(const fs::path& file) {
  const File opened = open_file(file);
  const int descriptor = ::fileno(opened.get());
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) throw std::system_error(errno, std::generic_category(), file.string());
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (address == MAP_FAILED) throw std::system_error(errno, std::generic_category(), file.string());
  data_.reset(static_cast<const std::byte*>(address), [size = size_, address](const std::byte*) { ::munmap(address, size); });
}

AtomicFile::AtomicFile(const fs::path& target) {
  std::error_code failed;
  target_ = fs::weakly_canonical(fs::absolute(target), failed);  // weakly_canonical leaves a relative name that does not exist relative
  if (target_.empty()) target_ = fs::absolute(target);
  if (fs::exists(target_, failed) && !fs::is_regular_file(target_, failed)) {
    throw OutputError(target_.string() + " is " + (fs::is_directory(target_, failed) ? "a directory" : "not a regular file") +
                      "; choose another name for the output");
  }
  temporary_ = target_.parent_path() / ("." + target_.filename().string() + ".tmp-" + std::to_string(::getpid()));
  fs::create_directories(target_.parent_path(), failed);
  if (failed) fail(failed.value());
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail(errno);
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
  const auto remedy = [number]() -> std::string {
    switch (number) {
      case ENOSPC:
      case EDQUOT: return "free some space or choose another disk";
      case EFBIG: return "choose a file system (or a ulimit -f) that takes files of that size";
      case EACCES:
      case EPERM:
      case EROFS: return "choose another path or change its permissions";
      case EIO: return "check the disk";
      default: return "choose another path";
    }
  };
  throw OutputError(target_.string() + " can't be written: " + std::generic_category().message(number) + "; " + remedy() +
                    "; existing files were not changed");
}

}  // namespace gridpool
