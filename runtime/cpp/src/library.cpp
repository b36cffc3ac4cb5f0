#include "library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>

#include "gridpool/error.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

void add_packages(std::vector<fs::path>& found, const fs::path& prefix) {
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(prefix / "lib", failed)) {
    if (entry.path().filename().string().rfind("python3", 0) != 0) continue;
    for (const char* folder : {"site-packages", "dist-packages"}) {
      if (fs::is_directory(entry.path() / folder, failed)) found.push_back(entry.path() / folder);
    }
  }
}

}  // namespace

Library::Library(const std::string& name) : handle_(::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)), name_(name) {
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
  Dl_info facts{};
  if (!::dladdr(reinterpret_cast<const void*>(&own_directory), &facts) || !facts.dli_fname) return {};
  std::error_code failed;
  return fs::weakly_canonical(facts.dli_fname, failed).parent_path();
}

std::vector<fs::path> python_packages() {
  std::vector<fs::path> found;
  const char *environment = std::getenv("VIRTUAL_ENV"), *path = std::getenv("PATH"), *home = std::getenv("HOME");
  if (environment && *environment) add_packages(found, environment);
  // The first python3 on the PATH: its prefix is the parent of its bin, a virtual environment's too.
  for (std::string rest = path ? path : ""; !rest.empty();) {
    const size_t end = std::min(rest.find(':'), rest.size());
    const fs::path folder = rest.substr(0, end);
    rest.erase(0, end + 1);
    std::error_code failed;
    if (!folder.empty() && fs::exists(folder / "python3", failed)) {
      add_packages(found, folder.parent_path());
      break;
    }
  }
  if (home && *home) add_packages(found, fs::path(home) / ".local");
  for (const char* prefix : {"/usr/local", "/usr"}) add_packages(found, prefix);
  return found;
}

}  // namespace gridpool
