#include "manifest.hpp"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <system_error>

#include "files.hpp"
#include "refusal.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFields[][2] = {
    {"family", "str"},        {"checkpoint", "dict"}, {"compression", "dict"},   {"frames", "int"}, {"grid", "list"},
    {"tokens_per_clip", "int"}, {"hidden_size", "int"}, {"preprocessing", "dict"}, {"prompt", "dict"}, {"llm", "dict"},
    {"precision", "str"},     {"opset", "int"},       {"limits", "dict"},        {"stages", "list"}, {"report", "list"},
    {"versions", "dict"},     {"files", "dict"}};

/// Whether it counts something: no bundle has 2^31 of anything, and products of larger numbers would overflow.
bool is_positive(const Json& value) { return is_integer(value) && value > 0 && value <= std::numeric_limits<int32_t>::max(); }

bool is_kind(const Json& value, const std::string& kind) {
  if (kind == "str") return value.is_string();
  if (kind == "int") return is_integer(value);
  return kind == "list" ? value.is_array() : value.is_object();
}

bool has(const Json& value, const std::string& kind, std::initializer_list<const char*> keys) {
  return value.is_object() && std::all_of(keys.begin(), keys.end(), [&](const char* key) { return is_kind(member(value, key), kind); });
}

/// Refuse values of another type than the runtime expects.
void check_values(const std::string& file, const Json& m) {
  const auto check = [&](const std::string& name, bool fits, const std::string& expected) {
    if (!fits) throw malformed(file + ": " + name + " is not " + expected);
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
  check("prompt", ids.is_array() && std::all_of(ids.begin(), ids.end(), is_integer), "a list of eos_token_ids");
  const auto is_text = [](const Json& part) { return part.is_string(); };
  const bool two = around.is_array() && around.size() == 2 && std::all_of(around.begin(), around.end(), is_text);
  check("prompt", !prompt.contains("around_question") || two, "the two texts of around_question");
  const Json& penalty = member(prompt, "repetition_penalty");
  const bool fits = penalty.is_number() && penalty.get<double>() >= 1e-3 && penalty.get<double>() <= 1e3;
  check("prompt", !prompt.contains("repetition_penalty") || fits, "a repetition_penalty from 0.001 to 1000");
}

}  // namespace

Manifest manifest_from(const Json& m) {
  Manifest result;
  result.family = m["family"];
  result.precision = m["precision"];
  result.compression = m["compression"]["spec"];
  result.frames = m["frames"];
  result.grid[0] = m["grid"][0], result.grid[1] = m["grid"][1];
  result.tokens_per_clip = m["tokens_per_clip"];
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
    throw unreadable(file, error.code());
  }
  Json values;
  std::string reason;
  if (!parse_json(text, values, reason)) throw malformed(file.string() + " is not valid JSON (" + reason + ")");
  const Json& version = member(values, "schema_version");
  if (!is_positive(version)) throw malformed(concat(file.string(), " has no schema_version; expected ", kSchemaVersion));
  if (version.get<int64_t>() > kSchemaVersion) {
    throw BundleError(concat(file.string(), " has schema ", version.get<int64_t>(), ", this runtime reads up to ", kSchemaVersion, ": update the runtime"));
  }
  std::vector<std::string> missing;
  for (const auto& [name, kind] : kFields) {
    if (!values.contains(name)) missing.emplace_back(name);
  }
  std::sort(missing.begin(), missing.end());
  if (!missing.empty()) throw malformed(file.string() + " lacks " + join(missing));
  check_values(file.string(), values);
  return values;
}

}  // namespace gridpool
