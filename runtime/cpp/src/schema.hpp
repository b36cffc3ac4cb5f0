// The JSON schema of manifest.json that both runtimes check: runtime/bundle/schema.json, built into the library.
#pragma once

#include <string>

#include "json.hpp"

namespace gridpool {

/// BundleError, one line that begins with `name`, for the first value in a manifest that the schema refuses.
void check_schema(const Json& manifest, const std::string& name);

}  // namespace gridpool
