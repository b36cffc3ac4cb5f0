#include "schema.hpp"

#define VALIJSON_USE_EXCEPTIONS 1
#include <memory>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

#include "manifest_schema.hpp"
#include "refusal.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

using Adapter = valijson::adapters::NlohmannJsonAdapter;
using Fault = valijson::ValidationResults::Error;

const valijson::Schema& manifest_schema() {
  static const auto schema = [] {
    const Json json = Json::parse(kManifestSchema);
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

}  // namespace

void check_schema(const Json& manifest, const std::string& name) {
  valijson::ValidationResults results;
  if (valijson::Validator().validate(manifest_schema(), Adapter(manifest), &results)) return;
  const Fault cause = cause_of(results);
  const std::string reason = cause.description.substr(0, cause.description.find_last_not_of('.') + 1);
  throw malformed(name + place_of(manifest, cause.context) + ": " + reason);
}

}  // namespace gridpool
