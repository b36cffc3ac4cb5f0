// Refusals that several files share, each worded once.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "gridpool/error.hpp"

namespace gridpool {

/// For contents of a bundle that no export writes.
inline BundleError malformed(const std::string& fault) { return BundleError(fault + "; export the bundle again"); }

/// For a file of a bundle that the system does not let us read.
inline BundleError unreadable(const std::filesystem::path& file, const std::error_code& reason) {
  return BundleError(file.string() + " can't be read: " + reason.message() + "; copy or export the bundle again");
}

/// NonFiniteError that begins with `what` for the values of a graph that overflowed.
inline void check_finite(const std::vector<float>& values, const std::string& what) {
  const auto is_finite = [](float value) { return std::isfinite(value); };
  if (!std::all_of(values.begin(), values.end(), is_finite)) throw NonFiniteError(what + " that are not finite; try a bundle of --precision fp32");
}

/// For a video stream of which no frame can be shown.
inline VideoError no_frames(const std::string& name) {
  return VideoError(name + " has a video stream without a frame that can be decoded (no keyframe, or none with its headers); "
                    "expected at least one frame");
}

}  // namespace gridpool
