#include "wheels.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "library.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

std::string environment_variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// The libraries in lib/python3*/{site,dist}-packages of a Python environment, the newest release first.
std::vector<fs::path> libraries_of(const fs::path& environment) {
  std::vector<fs::path> found;
  std::error_code failed;
  for (const auto& python : fs::directory_iterator(environment / "lib", failed)) {
    if (python.path().filename().string().rfind("python3", 0) != 0) continue;
    for (const char* packages : {"site-packages", "dist-packages"}) {
      for (const auto& entry : fs::directory_iterator(python.path() / packages / "onnxruntime" / "capi", failed)) {
        if (entry.path().filename().string().rfind("libonnxruntime.so", 0) == 0) found.push_back(entry.path());
      }
    }
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

/// Whether only this user and root can change what is at `path`, which is not a link.
bool is_private(const fs::path& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return false;
  return (info.st_uid == ::geteuid() || info.st_uid == 0) && (info.st_mode & S_IWOTH) == 0;
}

/// The libraries of an environment that was found by its place: links resolved, then the file and every directory up to the environment
/// checked. Directories above may belong to others: an environment that they put there would not be this user's.
void add_by_place(std::vector<WheelLibrary>& found, const fs::path& place) {
  std::error_code failed;
  const fs::path root = fs::canonical(place, failed);
  if (failed || !fs::is_directory(root, failed)) return;
  for (const auto& library : libraries_of(root)) {
    const fs::path file = fs::canonical(library, failed);
    if (failed) continue;
    bool is_safe = is_private(root) && is_private(file);
    for (fs::path part = file.parent_path(); is_safe && part != root && part.has_relative_path(); part = part.parent_path()) {
      is_safe = is_private(part);
    }
    found.push_back({file, is_safe ? "" : "can be changed by other users; name it with --onnxruntime FILE if it is to be trusted"});
  }
}

void add(std::vector<WheelLibrary>& found, const fs::path& environment) {
  for (const auto& library : libraries_of(environment)) found.push_back({library, ""});
}

/// The first python3 on the PATH: its prefix is the parent of its bin, a virtual environment's too.
fs::path prefix_of_python() {
  for (std::string rest = environment_variable("PATH"); !rest.empty();) {
    const size_t end = std::min(rest.find(':'), rest.size());
    const fs::path folder = rest.substr(0, end);
    rest.erase(0, end + 1);
    std::error_code failed;
    if (folder.is_absolute() && fs::exists(folder / "python3", failed)) return folder.parent_path();
  }
  return {};
}

}  // namespace

std::vector<WheelLibrary> wheel_libraries(const fs::path& bundle) {
  std::vector<WheelLibrary> found;
  const std::string active = environment_variable("VIRTUAL_ENV"), home = environment_variable("HOME");
  if (!active.empty()) add(found, active);
  std::error_code failed;
  std::vector<fs::path> places = {fs::current_path(failed)};
  for (fs::path folder : {own_directory(), fs::weakly_canonical(bundle, failed)}) {
    if (folder.is_relative()) continue;
    for (; folder.has_relative_path(); folder = folder.parent_path()) places.push_back(folder);
  }
  for (const auto& place : places) {
    if (!place.empty()) add_by_place(found, place / ".venv");
  }
  const fs::path python = prefix_of_python();
  if (!python.empty()) add(found, python);
  if (!home.empty()) add(found, fs::path(home) / ".local");
  for (const char* prefix : {"/usr/local", "/usr"}) add(found, prefix);

  std::vector<WheelLibrary> once;
  for (auto& library : found) {
    const bool is_known = std::any_of(once.begin(), once.end(), [&](const auto& other) { return other.file == library.file; });
    if (!is_known) once.push_back(std::move(library));
  }
  return once;
}

}  // namespace gridpool
