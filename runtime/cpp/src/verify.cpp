#include "verify.hpp"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "files.hpp"
#include "json.hpp"
#include "manifest.hpp"
#include "refusal.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

/// Where an earlier check of the bundle at `root` is remembered; none for a user without a home directory.
std::optional<fs::path> stamp_file(const fs::path& root) {
  fs::path cache;
  const char *xdg = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  if (xdg && *xdg) {
    cache = xdg;
  } else if (home && *home) {
    cache = fs::path(home) / ".cache";
  } else if (const passwd* user = ::getpwuid(::getuid()); user && user->pw_dir) {
    cache = fs::path(user->pw_dir) / ".cache";
  } else {
    return std::nullopt;
  }
  return cache / "st-gridpool" / "verified" / (sha256_of(root.string()).substr(0, 32) + ".json");
}

bool is_inside(const fs::path& root, const std::string& name) {
  if (name.find('\0') != name.npos) return false;
  std::error_code failed;
  const fs::path file = fs::weakly_canonical(root / name, failed);
  if (failed) return false;
  const auto [end, at] = std::mismatch(root.begin(), root.end(), file.begin(), file.end());
  return end == root.end();
}

/// The stamp of a file that is there and has the size that the manifest lists: [size, time of change in nanoseconds].
Json stamp_of(const fs::path& file, int64_t listed) {
  struct stat info {};
  if (::stat(file.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
    throw BundleError(file.string() + " is missing; copy the whole bundle directory or export it again");
  }
  if (info.st_size != listed) {
    throw BundleError(concat(file.string(), " has ", info.st_size, " bytes, the manifest lists ", listed,
                             ": it is truncated or altered; copy or export it again"));
  }
  return {info.st_size, info.st_mtim.tv_sec * int64_t{1000000000} + info.st_mtim.tv_nsec};
}

/// Whether an earlier check found what `identity` describes.
bool is_verified(const fs::path& stamps, const Json& identity) {
  try {
    Json earlier;
    std::string reason;
    return parse_json(read_file(stamps), earlier, reason) && earlier == identity;
  } catch (const std::system_error&) {
    return false;
  }
}

void check_hash(const fs::path& file, const std::string& expected) {
  std::string found;
  try {
    found = sha256_of_file(file);
  } catch (const std::system_error& error) {
    throw unreadable(file, error.code());
  }
  if (found != expected) throw BundleError(file.string() + " was altered: its SHA-256 is not the manifest's; copy or export it again");
}

}  // namespace

void check_files(const fs::path& path, const Manifest& manifest, bool verify, const std::function<void(const std::string&)>& progress) {
  const fs::path root = fs::canonical(path);
  Json stamps = Json::object();
  for (const auto& [name, entry] : manifest.files) {
    if (!is_inside(root, name)) throw malformed((path / kManifest).string() + " lists " + shown(name) + ", which is outside the bundle");
    stamps[name] = stamp_of(path / name, entry.size);
  }
  const auto seen = stamp_file(root);
  const Json identity = {{"manifest", sha256_of_file(path / kManifest)}, {"stamps", std::move(stamps)}};
  if (!verify && seen && is_verified(*seen, identity)) return;
  for (const auto& [name, entry] : manifest.files) {
    if (progress) progress("checking " + name);
    check_hash(path / name, entry.sha256);
  }
  if (!seen) return;
  try {
    AtomicFile file(*seen);
    file.write(identity.dump());
    file.commit();
  } catch (const OutputError&) {  // no writable cache: the next load hashes again
  }
}

}  // namespace gridpool
