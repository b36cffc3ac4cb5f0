// What commands print: results on stdout, logs on stderr.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "gridpool/chat.hpp"

namespace gridpool::cli {

using OrderedJson = nlohmann::ordered_json;

/// One line on stderr.
void log(const std::string& message);

/// What a user should know about the sampled frames, on stderr.
void log_notes(const Clip& clip);

/// One line on stdout, in ASCII.
void print_line(const OrderedJson& data);

/// A result on stdout: `data`, indented, if `json`, else `text`.
void print(bool json, const OrderedJson& data, const std::string& text);

/// {stage: seconds}
OrderedJson json_of(const Seconds& seconds);

}  // namespace gridpool::cli
