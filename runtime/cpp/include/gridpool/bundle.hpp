// The bundle: what `python -m export` wrote, with the checks of the Python runtime (runtime/bundle).
//
// Sizes are checked at every load, hashes at the first load of a path and after any change of a file's size or time; what
// was verified is remembered where the Python runtime remembers it, so either may start at once after the other.
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "gridpool/error.hpp"

namespace gridpool {

inline constexpr int kSchemaVersion = 1;
inline constexpr const char* kVision = "vision";           ///< graph names; the file of a graph is `<name>.onnx`
inline constexpr const char* kVisionLoop = "vision.loop";  ///< the same frame by frame: what a CPU runs
inline constexpr const char* kVisionEncoder = "vision.encoder";  ///< of a bundle that was split: one frame -> features
inline constexpr const char* kVisionCompressor = "vision.compressor";  ///< features of T frames -> visual tokens
inline constexpr const char* kDecoder = "llm/decoder";

/// One normalisation for each of three channels, and how frames are resized.
struct Preprocessing {
  int height = 0, width = 0;              ///< of the model's input
  int frame_height = 0, frame_width = 0;  ///< of the frames that the graph takes and resizes itself; 0 if it takes pixel values
  int resample = 0;  ///< Pillow's number: nearest, lanczos, bilinear, bicubic, box, hamming
  double rescale_factor = 0;
  float mean[3] = {0, 0, 0}, std[3] = {1, 1, 1};
};

/// How a question becomes a prompt; empty without an LLM.
struct PromptSettings {
  std::string video_token;
  int64_t video_token_id = 0;
  std::set<int64_t> eos_token_ids;
  double repetition_penalty = 1;  ///< on the ids of the prompt and of the answer so far; 1 for none
  bool has_text = false;     ///< false if the bundle's chat template rewrites questions
  std::string before, after; ///< the rendered chat template before and after the question
};

/// What a runtime needs of manifest.json; runtime/bundle documents every key.
struct GRIDPOOL_API Manifest {
  std::string family, precision, compression;
  int64_t frames = 0;           ///< T
  int64_t grid[2] = {0, 0};     ///< patch rows and columns of one frame
  int64_t tokens_per_clip = 0;  ///< N
  int64_t hidden_size = 0;      ///< D
  int64_t layers = 0;           ///< of the LLM; 0 without one
  int64_t max_context = 0;      ///< KV positions; 0 without an LLM
  std::string attention;        ///< variant of the decoder; "" without an LLM
  PromptSettings prompt;

  struct File {
    int64_t size = 0;
    std::string sha256;
  };
  std::vector<std::pair<std::string, File>> files;  ///< in the manifest's order

  /// Patch tokens of a clip before compression, T * H * W.
  int64_t patch_tokens() const;
  bool has_file(const std::string& name) const;
};

/// An opened bundle: its directory and its manifest, files checked.
class GRIDPOOL_API Bundle {
 public:
  /// Read and check the bundle in directory `path`.
  /// Throws BundleError, naming the file, for anything missing, truncated, altered or of a newer schema.
  static Bundle open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }
  /// Whether the bundle also has an encoder and a compressor (`python -m export --split`), which then run instead of vision.onnx.
  bool is_split() const;
  bool has_llm() const { return manifest_.layers > 0; }

  /// Path of a file that the manifest lists; BundleError if it lists none of that name.
  std::filesystem::path file(const std::string& name) const;

  /// One digest for a graph and its external data; engines are keyed by it.
  std::string sha256(const std::string& graph) const;

  /// The image processor's settings.
  const Preprocessing& preprocessing() const { return preprocessing_; }

 private:
  std::filesystem::path path_;
  Manifest manifest_;
  Preprocessing preprocessing_;
};

}  // namespace gridpool
