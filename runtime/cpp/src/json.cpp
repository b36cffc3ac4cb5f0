#include "json.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "text.hpp"

namespace gridpool {
namespace {

std::string shortened(const std::string& text) {
  constexpr size_t kMostBytes = 160;
  return text.size() > kMostBytes ? text.substr(0, kMostBytes) + "…" : text;
}

}  // namespace

Json parse_json(const std::string& text) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    const std::string reason = error.what();
    const size_t start = reason.find("] ");  // nlohmann's prefix names its exception
    // It quotes the last token, which may be the file.
    throw std::invalid_argument(lossy_utf8(shortened(start == reason.npos ? reason : reason.substr(start + 2))));
  }
}

std::string shown(const Json& value) {
  constexpr size_t kMostItems = 4;
  const auto is_scalar = [](const Json& item) { return !item.is_structured(); };
  if (value.is_object()) return "an object";
  if (value.is_array() && (value.size() > kMostItems || !std::all_of(value.begin(), value.end(), is_scalar))) {
    return concat("an array of ", value.size());  // dump() recurses, and a hostile file nests as deep as it likes
  }
  return shortened(value.dump(-1, ' ', true, Json::error_handler_t::replace));
}

bool is_integer(const Json& value) {
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
