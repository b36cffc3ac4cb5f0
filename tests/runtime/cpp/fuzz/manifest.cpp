// Any bytes as manifest.json: a bundle that opens, or an error of one line.
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <gridpool/bundle.hpp>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::filesystem::path folder = [] {
    auto made = std::filesystem::temp_directory_path() / ("fuzz-manifest-" + std::to_string(::getpid()));
    std::filesystem::create_directories(made / "llm");
    for (const char* name : {"vision.onnx", "llm/decoder.onnx"}) std::ofstream(made / name) << "x";
    ::setenv("XDG_CACHE_HOME", (made / "cache").c_str(), 1);
    return made;
  }();
  std::ofstream(folder / "manifest.json", std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const auto bundle = gridpool::Bundle::open(folder);
    bundle.sha256("vision");
    bundle.manifest().patch_tokens();
    bundle.preprocessing();
  } catch (const gridpool::UserError& error) {
    if (std::string(error.what()).empty()) std::abort();
  }
  return 0;
}
