// JSON: parsed, looked up, and shown in messages.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace gridpool {

using Json = nlohmann::json;

/// std::invalid_argument, the reason in one phrase, for text that is not JSON.
Json parse_json(const std::string& text);

/// `value` as a message shows it: a scalar, or an array of up to four, as JSON; anything larger by its type.
std::string shown(const Json& value);

/// Whether `value` is an integer that fits 64 bits (a boolean is not).
bool is_integer(const Json& value);

/// `object[key]`, or null if there is no such key.
const Json& member(const Json& object, const char* key);

}  // namespace gridpool
