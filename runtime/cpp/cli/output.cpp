#include "output.hpp"

#include <cstdio>

namespace gridpool::cli {

void log(const std::string& message) { std::fprintf(stderr, "%s\n", message.c_str()); }

void log_notes(const Clip& clip) {
  for (const std::string& note : clip.notes()) log(note);
}

void print_line(const OrderedJson& data) { std::puts(data.dump(-1, ' ', true).c_str()); }

void print(bool json, const OrderedJson& data, const std::string& text) { std::puts(json ? data.dump(1, ' ', true).c_str() : text.c_str()); }

OrderedJson json_of(const Seconds& seconds) {
  OrderedJson data = OrderedJson::object();
  for (const auto& [stage, value] : seconds) data[stage] = value;
  return data;
}

}  // namespace gridpool::cli
