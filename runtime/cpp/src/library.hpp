// Shared libraries that are opened at run time, and where to look for them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace gridpool {

/// A library opened with dlopen; it stays open, because code of it may run until the process ends.
class Library {
 public:
  /// Throws EngineError with the loader's reason.
  explicit Library(const std::string& name);

  /// The address of `symbol`; EngineError where the library has none.
  template <typename Function>
  Function* function(const char* symbol) const {
    return reinterpret_cast<Function*>(address(symbol));
  }

 private:
  void* address(const char* symbol) const;
  void* handle_;
  std::string name_;
};

/// The directory of the file that holds this code: the library's, or the program's where it is linked in.
std::filesystem::path own_directory();

/// `site-packages` directories of the Python environments of this machine: the active one's, then the system's.
std::vector<std::filesystem::path> python_packages();

}  // namespace gridpool
