// ONNX Runtime's library in the Python environments of this machine: what `pip install onnxruntime` leaves there.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace gridpool {

/// One libonnxruntime.so of a wheel; fault: why it must not be loaded, "" if it may be.
struct WheelLibrary {
  std::filesystem::path file;
  std::string fault;
};

/// The libraries of the activated environment (VIRTUAL_ENV), of a `.venv` in the current directory or in one above this library or
/// `bundle`, of the first python3 on the PATH, then of the user's and the system's packages.
///
/// A `.venv` that is found by its place was not chosen by the user, so it is used only if no one but this user or root can write to it.
std::vector<WheelLibrary> wheel_libraries(const std::filesystem::path& bundle);

}  // namespace gridpool
