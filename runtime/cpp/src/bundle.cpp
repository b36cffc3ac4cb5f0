#include "gridpool/bundle.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <system_error>

#include "files.hpp"
#include "manifest.hpp"
#include "refusal.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

/// Where an earlier check of the bundle at `root` is remembered, by Python too; "" without a cache or home directory.
fs::path stamp_file(const fs::path& root) {
  const char *xdg = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  const bool has_cache = xdg && *xdg;
  if (!has_cache && !(home && *home)) return {};
  const fs::path cache = has_cache ? fs::path(xdg) : fs::path(home) / ".cache";
  return cache / "st-gridpool" / "verified" / (sha256_of(root.string()).substr(0, 32) + ".json");
}

bool is_inside(const fs::path& root, const std::string& name) {
  if (name.find('\0') != name.npos) return false;
  std::error_code failed;
  const fs::path file = fs::weakly_canonical(root / name, failed);
  if (failed) return false;
  return std::mismatch(root.begin(), root.end(), file.begin(), file.end()).first == root.end();
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
    return Json::parse(read_file(stamps), nullptr, false) == identity;
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

/// BundleError naming the file that is missing, outside the bundle, truncated or altered.
void check_files(const fs::path& path, const Manifest& manifest) {
  const fs::path root = fs::canonical(path);
  Json stamps = Json::object();
  for (const auto& [name, entry] : manifest.files) {
    if (!is_inside(root, name)) throw malformed((path / kManifest).string() + " lists " + shown(name) + ", which is outside the bundle");
    stamps[name] = stamp_of(path / name, entry.size);
  }
  const fs::path seen = stamp_file(root);
  const Json identity = {{"manifest", sha256_of_file(path / kManifest)}, {"stamps", std::move(stamps)}};
  if (is_verified(seen, identity)) return;
  for (const auto& [name, entry] : manifest.files) check_hash(path / name, entry.sha256);
  if (seen.empty()) return;
  try {
    AtomicFile file(seen);
    file.write(identity.dump());
    file.commit();
  } catch (const OutputError&) {  // no writable cache: the next load hashes again
  }
}

}  // namespace

int64_t Manifest::patch_tokens() const {  // unsigned: a hostile manifest's product must not overflow
  return static_cast<int64_t>(static_cast<uint64_t>(frames) * static_cast<uint64_t>(grid[0]) * static_cast<uint64_t>(grid[1]));
}

bool Manifest::has_file(const std::string& name) const {
  return std::any_of(files.begin(), files.end(), [&](const auto& file) { return file.first == name; });
}

Bundle Bundle::open(const fs::path& path) {
  Bundle bundle;
  bundle.path_ = path;
  const Json values = read_manifest(path);
  bundle.manifest_ = manifest_from(values);
  check_files(path, bundle.manifest_);
  bundle.preprocessing_ = preprocessing_from(values);
  return bundle;
}

fs::path Bundle::file(const std::string& name) const {
  if (!manifest_.has_file(name)) {
    throw BundleError(path_.string() + " has no " + name + ": it was exported without it; export again without --only");
  }
  return path_ / name;
}

bool Bundle::is_split() const { return manifest_.has_file(std::string(kVisionEncoder) + ".onnx"); }

std::string Bundle::sha256(const std::string& graph) const {
  file(graph + ".onnx");  // throws if there is no such graph
  const std::string model = graph + ".onnx", weights = graph.substr(0, graph.find('.')) + ".onnx.";  // graphs of one component share them
  std::string digest, digests;
  for (const auto& [name, entry] : manifest_.files) {
    if (name == model) digest = entry.sha256;
    if (name.rfind(weights, 0) == 0) digests += entry.sha256;
  }
  return sha256_of(digest + digests);
}

}  // namespace gridpool
