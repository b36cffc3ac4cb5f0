#include "library.hpp"

#include <dlfcn.h>
#include <link.h>

#include <cstddef>
#include <vector>

#include "elf.hpp"
#include "gridpool/error.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

/// The file of this code, as the loader knows it; "" for a static program.
std::string own_file() {
  Dl_info info{};
  const bool found = ::dladdr(reinterpret_cast<const void*>(&own_file), &info) != 0;
  return found && info.dli_fname ? info.dli_fname : "";
}

/// The directories in which the loader looks for a library of this code: LD_LIBRARY_PATH, its RUNPATH, the system's.
std::vector<fs::path> loader_directories() {
  std::vector<fs::path> found;
  void* handle = ::dlopen(own_file().c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) handle = ::dlopen(nullptr, RTLD_LAZY);
  Dl_serinfo count{};
  if (!handle || ::dlinfo(handle, RTLD_DI_SERINFOSIZE, &count) != 0) return found;
  std::vector<std::max_align_t> memory(count.dls_size / sizeof(std::max_align_t) + 1);
  auto* paths = reinterpret_cast<Dl_serinfo*>(memory.data());
  *paths = count;
  if (::dlinfo(handle, RTLD_DI_SERINFO, paths) != 0) return found;
  for (unsigned i = 0; i < paths->dls_cnt; ++i) found.emplace_back(paths->dls_serpath[i].dls_name);
  return found;
}

/// The path at which the loader would find the file `name`, or `name` itself if that is left to the loader's cache.
/// EngineError if no file of that name can be loaded.
std::string looked_up(const std::string& name) {
  std::vector<std::string> refused;
  for (const auto& directory : loader_directories()) {
    const fs::path file = directory / name;
    std::error_code failed;
    if (!fs::exists(file, failed)) continue;
    const std::string fault = elf_fault(file);
    if (fault.empty()) return file.string();
    refused.push_back(file.string() + " " + fault);
  }
  if (!refused.empty()) throw EngineError(join(refused, "; "));
  return name;
}

}  // namespace

Library::Library(const std::string& name) : name_(name) {
  const bool is_path = name.find('/') != name.npos;
  const std::string fault = is_path ? elf_fault(name) : "";
  if (!fault.empty()) throw EngineError(name + " " + fault);
  handle_ = ::dlopen(is_path ? name.c_str() : looked_up(name).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle_) {
    const char* why = ::dlerror();
    throw EngineError(why ? why : name + " does not load");
  }
}

void* Library::address(const char* symbol) const {
  void* found = ::dlsym(handle_, symbol);
  if (!found) throw EngineError(name_ + " has no " + symbol + "; expected another release of this library");
  return found;
}

fs::path own_directory() {
  std::error_code failed;
  const fs::path file = own_file();
  return file.empty() ? file : fs::weakly_canonical(file, failed).parent_path();
}

}  // namespace gridpool
