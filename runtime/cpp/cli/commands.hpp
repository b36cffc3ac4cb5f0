// The commands behind main(): what they take, and what they do; each returns the exit code.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "arguments.hpp"
#include "gridpool/engine.hpp"

namespace gridpool::cli {

using OrderedJson = nlohmann::ordered_json;

int run(const Arguments& arguments);
int tokens(const Arguments& arguments);
int bench(const Arguments& arguments);
int watch(const Arguments& arguments);

std::string backend(const Arguments& arguments);

/// The engine's options as they were typed.
EngineOptions engine_options(const Arguments& arguments);

/// The same with a device; where `auto` had a choice it is said.
EngineOptions placed(const Arguments& arguments, const Bundle& bundle);

/// One line of log on stderr.
void say(const std::string& message);

/// A result on stdout: `data` with --json, else `text`.
void print(const Arguments& arguments, const OrderedJson& data, const std::string& text);

/// Stage timings as the JSON object that the Python runtime prints.
OrderedJson json_of(const std::vector<std::pair<std::string, double>>& seconds);

}  // namespace gridpool::cli
