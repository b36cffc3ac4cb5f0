// The machine that a benchmark ran on, and the memory that it took.
#pragma once

#include <cstdint>

#include "output.hpp"

namespace gridpool::cli {

/// The `hardware` object of `gridpool bench --json`.
OrderedJson hardware(const EngineOptions& options);

/// Count the peak from here on, if the kernel allows it.
void reset_peak();

/// Peak resident memory in bytes; 0 if the kernel doesn't tell.
int64_t peak_rss();

}  // namespace gridpool::cli
