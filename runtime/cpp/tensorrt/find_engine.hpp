// Which engine of a bundle can be used here: built from this very ONNX, by this TensorRT, for this GPU (runtime/engine/trt_records.py).
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "gridpool/engine.hpp"

namespace gridpool {

struct FoundEngine {
  std::filesystem::path file;
  std::filesystem::path plugin;  ///< the plugin library to load before it, or empty
  std::map<std::string, std::vector<Dimension>> inputs;  ///< shapes with the names of their dynamic dimensions
};

struct Gpu {
  std::string name;
  int major = 0, minor = 0;
};

/// EngineError with the reason why each engine found can't be used, and the command that builds one that can.
FoundEngine find_engine(const Bundle& bundle, const std::string& graph, const std::string& version, const Gpu& gpu);

}  // namespace gridpool
