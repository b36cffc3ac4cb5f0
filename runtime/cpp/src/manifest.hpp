// manifest.json: read, checked, and turned into what the runtime needs of it.
#pragma once

#include <filesystem>

#include "gridpool/bundle.hpp"
#include "json.hpp"

namespace gridpool {

inline constexpr const char* kManifest = "manifest.json";

/// The manifest of the bundle at `path`, checked against runtime/bundle/schema.json, which both runtimes check; BundleError names file
/// and field.
Json read_manifest(const std::filesystem::path& path);

Manifest manifest_from(const Json& values);
Preprocessing preprocessing_from(const Json& values);

}  // namespace gridpool
