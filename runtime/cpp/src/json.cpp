#include "json.hpp"

#include <cstdint>
#include <limits>

#include "text.hpp"

namespace gridpool {

bool parse_json(const std::string& text, Json& value, std::string& why) {
  try {
    value = Json::parse(text);
    return true;
  } catch (const Json::exception& error) {
    why = error.what();
    const size_t start = why.find("] ");  // nlohmann's own prefix names its exception
    if (start != why.npos) why.erase(0, start + 2);
    why = lossy_utf8(why);
    return false;
  }
}

std::string python_repr(const Json& value) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return python_str(value.get_ref<const std::string&>());
  std::vector<std::string> parts;
  if (value.is_array()) {
    for (const auto& item : value) parts.push_back(python_repr(item));
    return "[" + join(parts, ", ") + "]";
  }
  if (value.is_object()) {
    for (const auto& [key, item] : value.items()) parts.push_back(python_str(key) + ": " + python_repr(item));
    return "{" + join(parts, ", ") + "}";
  }
  return value.dump();
}

bool is_whole(const Json& value) {
  if (value.is_number_unsigned()) return value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  return value.is_number_integer();
}

const Json& member(const Json& object, const char* key) {
  static const Json none;
  if (!object.is_object()) return none;
  const auto found = object.find(key);
  return found == object.end() ? none : *found;
}

}  // namespace gridpool
