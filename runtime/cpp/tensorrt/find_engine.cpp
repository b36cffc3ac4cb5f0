#include "find_engine.hpp"

#include <set>
#include <system_error>

#include "files.hpp"
#include "json.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr const char* kBackend = "tensorrt";
constexpr const char* kPlugin = "libst_gridpool_plugin.so";

/// A folder's build.json; null, or what does not parse, for a folder without one.
Json record_of(const fs::path& folder) {
  try {
    return Json::parse(read_file(folder / "build.json"), nullptr, false);
  } catch (const std::system_error&) {
    return nullptr;
  }
}

std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : ""; }

bool runs_on(const std::string& target, const Gpu& gpu) {
  if (target == "any" || target == "ampere-plus") return gpu.major >= 8;
  const std::string here = format("sm%d%d", gpu.major, gpu.minor);
  return ("," + target + ",").find("," + here + ",") != std::string::npos;
}

/// Why an engine can't be used here, "" if it can.
std::string mismatch(const Bundle& bundle, const std::string& graph, const fs::path& folder, const Json& record, const std::string& version,
                     const Gpu& gpu) {
  const Json& entry = member(member(record, "graphs"), graph.c_str());
  if (!entry.is_object()) return "was not built";
  if (text_of(member(entry, "onnx_sha256")) != bundle.sha256(graph)) return "was built from another ONNX graph";
  std::error_code failed;
  if (member(entry, "plugin") == "library" && !fs::is_regular_file(folder / kPlugin, failed)) {
    return std::string("needs ") + kPlugin + " beside it, which is missing";
  }
  const std::string built = text_of(member(record, "version"));
  if (built != version) return "was built by version " + built + ", here is " + version;
  const auto size = fs::file_size(folder / (graph + ".engine"), failed);
  if (failed || !is_integer(member(entry, "size")) || member(entry, "size") != size) return "is missing or truncated";
  const std::string target = text_of(member(record, "target"));
  if (!runs_on(target, gpu)) return "was built for " + target + ", here is " + gpu.name + format(" (sm%d%d)", gpu.major, gpu.minor);
  return "";
}

std::map<std::string, std::vector<Dimension>> shapes_of(const Json& inputs) {
  std::map<std::string, std::vector<Dimension>> shapes;
  for (const auto& [name, shape] : inputs.items()) {
    for (const Json& size : shape) {
      shapes[name].push_back(is_integer(size) ? Dimension{size.get<int64_t>(), ""} : Dimension{-1, text_of(size)});
    }
  }
  return shapes;
}

}  // namespace

FoundEngine find_engine(const Bundle& bundle, const std::string& graph, const std::string& version, const Gpu& gpu) {
  const std::string command = "run `python -m runtime build " + bundle.path().string() + " --backend " + kBackend + "`";
  std::set<fs::path> folders;
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(bundle.path() / "engines", failed)) {
    if (entry.path().filename().string().rfind(std::string(kBackend) + "-", 0) == 0) folders.insert(entry.path());
  }
  std::vector<std::string> refused;
  for (const auto& folder : folders) {
    const Json record = record_of(folder);
    if (member(record, "schema_version") != 1 || member(record, "backend") != kBackend) continue;
    const fs::path file = folder / (graph + ".engine");
    const std::string reason = mismatch(bundle, graph, folder, record, version, gpu);
    if (reason.empty()) {
      const Json& entry = record["graphs"][graph];
      return {file, member(entry, "plugin") == "library" ? folder / kPlugin : fs::path(), shapes_of(member(entry, "inputs"))};
    }
    refused.push_back(file.string() + " " + reason);
  }
  if (!refused.empty()) throw EngineError(join(refused, "; ") + ": " + command);
  throw EngineError(bundle.path().string() + " has no " + kBackend + " engine for " + graph + ": " + command);
}

}  // namespace gridpool
