#include "gridpool/bundle.hpp"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <system_error>

#include "files.hpp"
#include "json.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr const char* kManifest = "manifest.json";
constexpr const char* kFields[][2] = {
    {"family", "str"},        {"checkpoint", "dict"}, {"compression", "dict"},   {"frames", "int"}, {"grid", "list"},
    {"tokens_per_clip", "int"}, {"hidden_size", "int"}, {"preprocessing", "dict"}, {"prompt", "dict"}, {"llm", "dict"},
    {"precision", "str"},     {"opset", "int"},       {"limits", "dict"},        {"stages", "list"}, {"report", "list"},
    {"versions", "dict"},     {"files", "dict"}};

bool is_positive(const Json& value) { return is_whole(value) && value.get<int64_t>() > 0; }

bool is_kind(const Json& value, const std::string& kind) {
  if (kind == "str") return value.is_string();
  if (kind == "int") return is_whole(value);
  return kind == "list" ? value.is_array() : value.is_object();
}

bool has(const Json& value, const std::string& kind, std::initializer_list<const char*> keys) {
  return value.is_object() && std::all_of(keys.begin(), keys.end(), [&](const char* key) { return is_kind(member(value, key), kind); });
}

/// Refuse values of another type than the runtime will take them for; the order and the words of runtime/bundle.py.
void check_values(const std::string& file, const Json& m) {
  const auto check = [&](const std::string& name, bool fits, const std::string& expected) {
    if (!fits) throw BundleError(file + ": " + name + " is not " + expected + "; export the bundle again");
  };
  for (const auto& [name, kind] : kFields) check(name, is_kind(m[name], kind), std::string("of type ") + kind);
  for (const char* name : {"frames", "tokens_per_clip", "hidden_size", "opset"}) check(name, is_positive(m[name]), "a positive number");
  const Json& grid = m["grid"];
  check("grid", grid.size() == 2 && is_positive(grid[0]) && is_positive(grid[1]), "two positive numbers");
  check("checkpoint", has(m["checkpoint"], "str", {"id", "sha256"}), "an id and a sha256");
  check("compression", has(m["compression"], "str", {"preset", "spec", "place"}), "a preset, a spec and a place");
  for (const Json& stage : m["stages"]) check("stages", has(stage, "str", {"name", "graph", "tensor"}), "a list of named tensors");
  for (const auto& [name, entry] : m["files"].items()) {
    check("files: " + name, has(entry, "int", {"size"}) && has(entry, "str", {"sha256"}), "a size and a sha256");
  }
  check("precision", m["precision"] == "fp32" || m["precision"] == "fp16" || m["precision"] == "int8", "fp32, fp16 or int8");
  const bool vision = m["files"].contains("vision.onnx"), decoder = m["files"].contains("llm/decoder.onnx");
  check("files", vision || decoder, "a list with vision.onnx or llm/decoder.onnx");
  check("files", m["files"].contains("vision.encoder.onnx") == m["files"].contains("vision.compressor.onnx"),
        "a list with both of vision.encoder.onnx and vision.compressor.onnx, or neither");
  const Json& llm = m["llm"];
  check("llm", !llm.empty() == decoder, "filled in exactly where there is a llm/decoder.onnx");
  if (llm.empty()) return;
  check("llm", is_positive(member(llm, "layers")) && is_positive(member(llm, "kv_heads")) && is_positive(member(llm, "head_dim")),
        "the LLM's layers, kv_heads and head_dim");
  const Json& weights = member(llm, "precision");
  const bool known = weights.is_null() || weights == "fp32" || weights == "fp16" || weights == "int8" || weights == "int4";
  check("llm", known, "of precision fp32, fp16, int8 or int4");
  check("limits", is_positive(member(m["limits"], "max_context")), "a max_context");
  const Json &prompt = m["prompt"], &ids = member(prompt, "eos_token_ids"), &around = member(prompt, "around_question");
  check("prompt", has(prompt, "str", {"chat_template", "video_token"}), "a chat_template and a video_token");
  check("prompt", has(prompt, "int", {"video_token_id"}), "a video_token_id");
  check("prompt", ids.is_array() && std::all_of(ids.begin(), ids.end(), is_whole), "a list of eos_token_ids");
  const auto is_text = [](const Json& part) { return part.is_string(); };
  const bool two = around.is_array() && around.size() == 2 && std::all_of(around.begin(), around.end(), is_text);
  check("prompt", !prompt.contains("around_question") || two, "the two texts of around_question");
  const Json& penalty = member(prompt, "repetition_penalty");
  const bool fits = penalty.is_number() && penalty.get<double>() >= 1e-3 && penalty.get<double>() <= 1e3;
  check("prompt", !prompt.contains("repetition_penalty") || fits, "a repetition_penalty from 0.001 to 1000");
}

Manifest manifest_from(const Json& m) {
  Manifest result;
  result.family = m["family"];
  result.precision = m["precision"];
  result.compression = m["compression"]["spec"];
  result.frames = m["frames"];
  result.grid[0] = m["grid"][0], result.grid[1] = m["grid"][1];
  result.tokens_per_clip = std::min(m["tokens_per_clip"].get<int64_t>(), int64_t{1} << 62);  // a prompt's length is added to it
  result.hidden_size = m["hidden_size"];
  for (const auto& [name, entry] : m["files"].items()) {
    result.files.push_back({name, {entry["size"].get<int64_t>(), entry["sha256"].get<std::string>()}});
  }
  if (m["llm"].empty()) return result;
  result.layers = m["llm"]["layers"];
  result.max_context = m["limits"]["max_context"];
  const Json& prompt = m["prompt"];
  result.prompt.video_token = prompt["video_token"];
  result.prompt.video_token_id = prompt["video_token_id"];
  result.prompt.eos_token_ids = prompt["eos_token_ids"].get<std::vector<int64_t>>();
  if (prompt.contains("repetition_penalty")) result.prompt.repetition_penalty = prompt["repetition_penalty"];
  const Json& around = member(prompt, "around_question");
  result.prompt.has_text = !around.is_null();
  if (result.prompt.has_text) result.prompt.before = around[0], result.prompt.after = around[1];
  return result;
}

Json read_manifest(const fs::path& path) {
  std::error_code failed;
  if (!fs::exists(path, failed)) {
    throw BundleError("no bundle at " + path.string() + ": no such directory; write one with `python -m export --model llava-ov --out " +
                      path.string() + "`");
  }
  const fs::path file = path / kManifest;
  std::string text;
  try {
    text = read_file(file);
  } catch (const std::system_error& error) {
    const int number = error.code().value();
    if (number == ENOENT) {
      throw BundleError(path.string() + " is not a bundle: it has no " + kManifest +
                        "; expected a directory that `python -m export` wrote");
    }
    if (number == ENOTDIR) throw BundleError(path.string() + " is a file; expected the bundle's directory");
    throw BundleError(file.string() + " can't be read: " + error.code().message() + "; copy the bundle or export it again");
  }
  Json values;
  std::string why;
  if (!parse_json(text, values, why)) throw BundleError(file.string() + " is not valid JSON (" + why + "); export the bundle again");
  const Json& version = member(values, "schema_version");
  if (!is_positive(version)) {
    throw BundleError(format("%s has no schema_version; expected %d, export the bundle again", file.c_str(), kSchemaVersion));
  }
  if (version.get<int64_t>() > kSchemaVersion) {
    throw BundleError(format("%s has schema %lld, this runtime reads up to %d: update the runtime", file.c_str(),
                             version.get<long long>(), kSchemaVersion));
  }
  std::vector<std::string> missing;
  for (const auto& [name, kind] : kFields) {
    if (!values.contains(name)) missing.emplace_back(name);
  }
  std::sort(missing.begin(), missing.end());
  if (!missing.empty()) throw BundleError(file.string() + " lacks " + join(missing, ", ") + "; export the bundle again");
  check_values(file.string(), values);
  return values;
}

/// Where an earlier check of the bundle at `root` is remembered; none for a user without a home.
std::optional<fs::path> stamp_file(const fs::path& root) {
  fs::path cache;
  const char *xdg = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  if (xdg && *xdg) {
    cache = xdg;
  } else if (home && *home) {
    cache = fs::path(home) / ".cache";
  } else if (const passwd* user = ::getpwuid(::getuid()); user && user->pw_dir) {
    cache = fs::path(user->pw_dir) / ".cache";
  } else {
    return std::nullopt;
  }
  return cache / "st-gridpool" / "verified" / (sha256_of(root.string()).substr(0, 32) + ".json");
}

bool is_inside(const fs::path& root, const std::string& name) {
  if (name.find('\0') != name.npos) return false;
  std::error_code failed;
  const fs::path file = fs::weakly_canonical(root / name, failed);
  if (failed) return false;
  const auto [end, at] = std::mismatch(root.begin(), root.end(), file.begin(), file.end());
  return end == root.end();
}

void check_files(const fs::path& path, const Manifest& manifest, bool verify, const std::function<void(const std::string&)>& progress) {
  const fs::path root = fs::canonical(path);
  Json stamps = Json::object();
  for (const auto& [name, entry] : manifest.files) {
    const fs::path file = path / name;
    if (!is_inside(root, name)) {
      throw BundleError((path / kManifest).string() + " lists " + python_str(name) + ", which lies outside the bundle; export the bundle again");
    }
    struct stat facts {};
    if (::stat(file.c_str(), &facts) != 0 || !S_ISREG(facts.st_mode)) {
      throw BundleError(file.string() + " is missing; copy the whole bundle directory or export it again");
    }
    if (facts.st_size != entry.size) {
      throw BundleError(format("%s has %lld bytes, the manifest says %lld: it is truncated or altered; copy or export it again",
                               file.c_str(), static_cast<long long>(facts.st_size), static_cast<long long>(entry.size)));
    }
    stamps[name] = {facts.st_size, facts.st_mtim.tv_sec * int64_t{1000000000} + facts.st_mtim.tv_nsec};
  }
  const auto seen = stamp_file(root);
  const Json identity = {{"manifest", sha256_of_file(path / kManifest)}, {"stamps", std::move(stamps)}};
  if (!verify && seen) {
    try {
      Json earlier;
      std::string why;
      if (parse_json(read_file(*seen), earlier, why) && earlier == identity) return;
    } catch (const std::system_error&) {  // never checked before
    }
  }
  for (const auto& [name, entry] : manifest.files) {
    if (progress) progress("checking " + name);
    std::string found;
    try {
      found = sha256_of_file(path / name);
    } catch (const std::system_error& error) {
      throw BundleError((path / name).string() + " can't be read: " + error.code().message() + "; copy or export it again");
    }
    if (found != entry.sha256) {
      throw BundleError((path / name).string() + " was altered: its SHA-256 is not the manifest's; copy or export it again");
    }
  }
  if (!seen) return;
  try {
    AtomicFile file(*seen);
    file.write(identity.dump());
    file.commit();
  } catch (const OutputError&) {  // no writable cache: the next load hashes again
  }
}

bool is_number(const Json& value) { return value.is_number() && std::isfinite(value.get<double>()); }

void read_channels(const char* name, const Json& value, float (&channels)[3]) {
  const bool three = value.is_array() && value.size() == 3 && std::all_of(value.begin(), value.end(), is_number);
  for (size_t i = 0; i < 3 && (three || is_number(value)); ++i) {
    channels[i] = static_cast<float>((three ? value[i] : value).get<double>());
    if (!std::isfinite(channels[i])) break;
    if (i == 2) return;
  }
  throw BundleError(std::string("the bundle's preprocessing has ") + name + " " + python_repr(value) +
                    "; expected one number or three, export the bundle again");
}

void read_size(const std::string& name, const Json& size, int& height, int& width) {
  const bool fits = size.is_array() && size.size() == 2 && is_positive(size[0]) && is_positive(size[1]);
  const std::string got = "the bundle's preprocessing has " + name + " " + python_repr(size) + "; expected ";
  if (!fits) throw BundleError(got + "[height, width], export the bundle again");
  if (size[0] > 1 << 15 || size[1] > 1 << 15) throw BundleError(got + "at most 32768 a side");
  height = size[0], width = size[1];
}

Preprocessing preprocessing_from(const Json& p) {
  const std::vector<std::string> filters = {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"};
  std::vector<std::string> missing;
  for (const char* key : {"image_mean", "image_std", "resample", "rescale_factor", "size"}) {
    if (!p.contains(key)) missing.emplace_back(key);
  }
  if (!missing.empty()) throw BundleError("the bundle's preprocessing lacks " + join(missing, ", ") + "; export the bundle again");
  Preprocessing result;
  read_size("size", p["size"], result.height, result.width);
  if (p.contains("frames")) read_size("frames", p["frames"], result.frame_height, result.frame_width);
  const Json& resample = p["resample"];
  const auto named = std::find(filters.begin(), filters.end(), resample.is_string() ? resample.get<std::string>() : "");
  if (is_whole(resample) && resample >= 0 && resample < filters.size()) {
    result.resample = resample;
  } else if (named != filters.end()) {
    result.resample = static_cast<int>(named - filters.begin());
  } else {
    const std::string text = resample.is_string() ? resample.get<std::string>() : python_repr(resample);
    throw BundleError("the bundle's preprocessing has no resample \"" + text + "\"" + nearest(text, filters));
  }
  read_channels("image_mean", p["image_mean"], result.mean);
  read_channels("image_std", p["image_std"], result.std);
  if (!is_number(p["rescale_factor"])) {
    throw BundleError("the bundle's preprocessing has rescale_factor " + python_repr(p["rescale_factor"]) +
                      "; expected a number, export the bundle again");
  }
  result.rescale_factor = p["rescale_factor"];
  if (std::any_of(std::begin(result.std), std::end(result.std), [](float value) { return value == 0; })) {
    throw BundleError("the bundle's preprocessing has a zero in image_std; export the bundle again");
  }
  return result;
}

}  // namespace

int64_t Manifest::patch_tokens() const {  // for reports: a manifest may say anything, and must not overflow
  return static_cast<int64_t>(static_cast<uint64_t>(frames) * static_cast<uint64_t>(grid[0]) * static_cast<uint64_t>(grid[1]));
}

bool Manifest::has_file(const std::string& name) const {
  return std::any_of(files.begin(), files.end(), [&](const auto& file) { return file.first == name; });
}

Bundle Bundle::open(const fs::path& path, bool verify, const std::function<void(const std::string&)>& progress) {
  Bundle bundle;
  bundle.path_ = path;
  const Json values = read_manifest(path);
  bundle.manifest_ = manifest_from(values);
  check_files(path, bundle.manifest_, verify, progress);
  try {
    bundle.preprocessing_ = preprocessing_from(values["preprocessing"]);
  } catch (const BundleError& error) {
    bundle.preprocessing_fault_ = error.what();  // no concern of who only uses the LLM half
  }
  return bundle;
}

const Preprocessing& Bundle::preprocessing() const {
  if (!preprocessing_fault_.empty()) throw BundleError(preprocessing_fault_);
  return preprocessing_;
}

fs::path Bundle::file(const std::string& name) const {
  if (!manifest_.has_file(name)) {
    throw BundleError(path_.string() + " has no " + name + ": it was exported without it; export again without --only");
  }
  return path_ / name;
}

bool Bundle::is_split() const { return manifest_.has_file(std::string(kVisionEncoder) + ".onnx"); }

std::string Bundle::sha256(const std::string& graph) const {
  file(graph + ".onnx");  // throws the message for an absent graph
  const std::string own = graph + ".onnx", weights = graph.substr(0, graph.find('.')) + ".onnx.";  // graphs of one half share weights
  std::string digest, digests;
  for (const auto& [name, entry] : manifest_.files) {
    if (name == own) digest = entry.sha256;
    if (name.rfind(weights, 0) == 0) digests += entry.sha256;
  }
  return sha256_of(digest + digests);
}

}  // namespace gridpool
