// The machine that a benchmark ran on, and the memory that it took.
#pragma once

#include <cstdint>

#include "output.hpp"

namespace gridpool::cli {

/// The `hardware` object of `gridpool bench --json`.
OrderedJson hardware(const EngineOptions& options);

/// The peak counts from here on, if the kernel lets a process reset it.
void reset_peak();

/// Peak resident memory in bytes.
int64_t peak_rss();

}  // namespace gridpool::cli
