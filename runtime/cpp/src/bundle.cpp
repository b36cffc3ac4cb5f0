#include "gridpool/bundle.hpp"

#include <algorithm>

#include "files.hpp"
#include "manifest.hpp"
#include "verify.hpp"

namespace gridpool {
namespace fs = std::filesystem;

int64_t Manifest::patch_tokens() const {  // unsigned: a hostile manifest's product must not overflow
  return static_cast<int64_t>(static_cast<uint64_t>(frames) * static_cast<uint64_t>(grid[0]) * static_cast<uint64_t>(grid[1]));
}

bool Manifest::has_file(const std::string& name) const {
  return std::any_of(files.begin(), files.end(), [&](const auto& file) { return file.first == name; });
}

Bundle Bundle::open(const fs::path& path, bool verify, const std::function<void(const std::string&)>& progress) {
  Bundle bundle;
  bundle.path_ = path;
  const Json values = read_manifest(path);
  bundle.manifest_ = manifest_from(values);
  check_files(path, bundle.manifest_, verify, progress);
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
