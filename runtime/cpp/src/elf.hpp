// Shared libraries as files: what the loader does not check before it maps one.
#pragma once

#include <filesystem>
#include <string>

namespace gridpool {

/// Why `file` can't be loaded into this process, as a clause after its name; "" if it can. A truncated library
/// must not reach dlopen, which maps what is missing and ends the process with SIGBUS.
std::string elf_fault(const std::filesystem::path& file);

}  // namespace gridpool
