// Whether a bundle's files are those that its manifest lists.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "gridpool/bundle.hpp"

namespace gridpool {

/// Compare sizes at every call, and hashes if `verify`, at the first call for a path, or after a file's size or time has changed.
/// What was verified is remembered in the user's cache, in the format that the Python runtime writes and reads.
/// progress: called before each file is hashed. BundleError names the file that is missing, outside the bundle, truncated or altered.
void check_files(const std::filesystem::path& path, const Manifest& manifest, bool verify,
                 const std::function<void(const std::string&)>& progress);

}  // namespace gridpool
