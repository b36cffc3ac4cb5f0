// Any bytes as a video or still: frames within the size that was asked for, or an error of one line.
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <gridpool/video.hpp>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::filesystem::path file = std::filesystem::temp_directory_path() / ("fuzz-media-" + std::to_string(::getpid()));
  std::ofstream(file, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const auto clip = gridpool::sample_frames(file, 4, [](gridpool::Image image) {
      if (image.pixels.size() != static_cast<size_t>(image.height) * static_cast<size_t>(image.width) * 3) std::abort();
      image.pixels.resize(3);
      return image;
    });
    if (clip.frames.size() != 4 || clip.indices.size() != 4 || clip.timestamps.size() != 4) std::abort();
  } catch (const gridpool::UserError& error) {
    if (std::string(error.what()).empty()) std::abort();
  }
  return 0;
}
