// The timeline of a file: from its packets, which is fast, or from its decoded frames.
#pragma once

#include <filesystem>
#include <optional>

#include "timeline.hpp"

namespace gridpool {

/// None if the packets don't tell every frame's time. VideoError for damage.
std::optional<Timeline> packet_timeline(const std::filesystem::path& path);

/// By decoding all of the file. If files were joined, each begins when the one before it ends. VideoError for damage, if `strict` for
/// any, and for a file without frames.
Timeline decoded_timeline(const std::filesystem::path& path, bool strict);

}  // namespace gridpool
