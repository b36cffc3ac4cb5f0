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

/// One line a row under a ruled header; the second and third columns are flush right.
std::string table(std::vector<std::vector<std::string>> rows);

/// "1.5 GB"
std::string size_text(double bytes);

/// "12,345"
std::string thousands(int64_t value);

}  // namespace gridpool::cli
