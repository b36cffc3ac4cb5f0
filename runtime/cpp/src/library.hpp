// Shared libraries that are opened at run time.
#pragma once

#include <filesystem>
#include <string>

namespace gridpool {

/// A library opened with dlopen; it stays open, because code of it may run until the process ends.
class Library {
 public:
  /// name: a path, or a file name that is looked for where the loader looks. EngineError, with the reason, if it does not open.
  explicit Library(const std::string& name);

  /// The address of `symbol`; EngineError if the library has none.
  template <typename Function>
  Function* function(const char* symbol) const {
    return reinterpret_cast<Function*>(address(symbol));
  }

 private:
  void* address(const char* symbol) const;
  void* handle_;
  std::string name_;
};

/// The directory of the file of this code: the library's, or the program's if it is linked in.
std::filesystem::path own_directory();

}  // namespace gridpool
