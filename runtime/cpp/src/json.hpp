// JSON read with nlohmann's parser, and spelt as Python spells values in messages.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace gridpool {

using Json = nlohmann::json;

/// Parse; false, and why in one phrase, for what is no JSON.
bool parse_json(const std::string& text, Json& value, std::string& why);

/// Python's repr of a JSON value.
std::string python_repr(const Json& value);

/// Whether `value` is a whole number that fits 64 bits (true and false are none).
bool is_whole(const Json& value);

/// `object[key]`, or null where there is none of that name.
const Json& member(const Json& object, const char* key);

}  // namespace gridpool
