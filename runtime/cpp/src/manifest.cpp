#include "manifest.hpp"

#define VALIJSON_USE_EXCEPTIONS 1
#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <system_error>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

#include "files.hpp"
#include "refusal.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr char kSchema[] =
#include "manifest_schema.inc"
    ;

using Adapter = valijson::adapters::NlohmannJsonAdapter;
using Fault = valijson::ValidationResults::Error;

const valijson::Schema& manifest_schema() {
  static const auto schema = [] {
    const Json json = Json::parse(kSchema);
    auto parsed = std::make_unique<valijson::Schema>();
    valijson::SchemaParser(valijson::SchemaParser::kDraft7).populateSchema(Adapter(json), *parsed);
    return parsed;
  }();
  return *schema;
}

/// The fault with the longest path, of equals the last: the others are of values that contain it, or of alternatives tried before.
Fault cause_of(valijson::ValidationResults& results) {
  Fault cause, fault;
  while (results.popError(fault)) {
    if (fault.context.size() >= cause.context.size()) cause = fault;
  }
  return cause;
}

/// Where a fault is and what is there: ": grid[1] is 0". context: "<root>", then each key or index in brackets.
std::string place_of(const Json& manifest, const std::vector<std::string>& context) {
  const Json* value = &manifest;
  std::string path;
  for (size_t i = 1; i < context.size(); ++i) {
    const std::string step = context[i].substr(1, context[i].size() - 2);
    if (value->is_array()) {
      path += "[" + step + "]";
      value = &value->at(std::stoul(step));
    } else {
      path += (path.empty() ? "" : ".") + (i == 1 ? step : shown(step));
      value = &member(*value, step.c_str());
    }
  }
  return path.empty() ? "" : ": " + path + " is " + shown(*value);
}

/// BundleError, one line that begins with `name`, for the first value in a manifest that the schema refuses.
void check_schema(const Json& manifest, const std::string& name) {
  valijson::ValidationResults results;
  if (valijson::Validator().validate(manifest_schema(), Adapter(manifest), &results)) return;
  const Fault cause = cause_of(results);
  const std::string reason = cause.description.substr(0, cause.description.find_last_not_of('.') + 1);
  throw malformed(name + place_of(manifest, cause.context) + ": " + reason);
}

/// valijson takes 2^64 - 1 for -1, which is within the schema's limits of an id and of nothing else.
void check_ids(const Json& prompt, const std::string& name) {
  const auto check = [&](const Json& id) {
    if (!is_integer(id)) throw malformed(name + ": prompt has the id " + shown(id) + ", expected 32 bits");
  };
  check(prompt["video_token_id"]);
  for (const Json& id : prompt["eos_token_ids"]) check(id);
}

/// One number for all channels, or one for each.
void read_channels(const Json& value, float (&channels)[3]) {
  for (size_t i = 0; i < 3; ++i) channels[i] = (value.is_array() ? value[i] : value).get<float>();
}

/// Pillow's number of a filter.
int filter_of(const Json& value) {
  constexpr std::array<const char*, 6> kFilters = {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"};
  return value.is_string() ? static_cast<int>(std::find(kFilters.begin(), kFilters.end(), value) - kFilters.begin()) : value.get<int>();
}

}  // namespace

Json read_manifest(const fs::path& path) {
  std::error_code failed;
  if (!fs::exists(path, failed)) {
    throw BundleError("no bundle at " + path.string() + ": no such directory; write one with `python -m export --model llava-ov --out " +
                      path.string() + "`");
  }
  const fs::path file = path / kManifest;
  Json values;
  try {
    values = parse_json(read_file(file));
  } catch (const std::invalid_argument& error) {
    throw malformed(file.string() + " is not valid JSON (" + error.what() + ")");
  } catch (const std::system_error& error) {
    const int number = error.code().value();
    if (number == ENOENT) {
      throw BundleError(path.string() + " is not a bundle: it has no " + kManifest +
                        "; expected a directory that `python -m export` wrote");
    }
    if (number == ENOTDIR) throw BundleError(path.string() + " is a file; expected the bundle's directory");
    throw unreadable(file, error.code());
  }
  const Json& version = member(values, "schema_version");
  if (is_integer(version) && version > kSchemaVersion) {
    throw BundleError(concat(file.string(), " has schema ", version.get<int64_t>(), ", this runtime reads up to ", kSchemaVersion, ": update the runtime"));
  }
  check_schema(values, file.string());
  if (!values["llm"].empty()) check_ids(values["prompt"], file.string());
  return values;
}

Manifest manifest_from(const Json& m) {
  Manifest result;
  result.family = m["family"];
  result.precision = m["precision"];
  result.compression = m["compression"]["spec"];
  result.frames = m["frames"];
  m["grid"].get_to(result.grid);
  result.tokens_per_clip = m["tokens_per_clip"];
  result.hidden_size = m["hidden_size"];
  for (const auto& [name, entry] : m["files"].items()) {
    result.files.push_back({name, {entry["size"].get<int64_t>(), entry["sha256"].get<std::string>()}});
  }
  if (m["llm"].empty()) return result;
  result.layers = m["llm"]["layers"];
  result.max_context = m["limits"]["max_context"];
  result.attention = m["llm"].value("attention", "portable");
  const Json& prompt = m["prompt"];
  result.prompt.video_token = prompt["video_token"];
  result.prompt.video_token_id = prompt["video_token_id"];
  result.prompt.eos_token_ids = prompt["eos_token_ids"].get<std::set<int64_t>>();
  if (prompt.contains("repetition_penalty")) result.prompt.repetition_penalty = prompt["repetition_penalty"];
  const Json& around = member(prompt, "around_question");
  result.prompt.has_text = !around.is_null();
  if (result.prompt.has_text) result.prompt.before = around[0], result.prompt.after = around[1];
  return result;
}

Preprocessing preprocessing_from(const Json& values) {
  const Json& p = values["preprocessing"];
  Preprocessing result;
  result.height = p["size"][0], result.width = p["size"][1];
  if (p.contains("frames")) result.frame_height = p["frames"][0], result.frame_width = p["frames"][1];
  result.resample = filter_of(p["resample"]);
  result.rescale_factor = p["rescale_factor"];
  read_channels(p["image_mean"], result.mean);
  read_channels(p["image_std"], result.std);
  return result;
}

}  // namespace gridpool
