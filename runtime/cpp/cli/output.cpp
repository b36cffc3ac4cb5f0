#include "output.hpp"

#include <algorithm>
#include <cstdio>

#include "text.hpp"

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

std::string table(std::vector<std::vector<std::string>> rows) {
  const auto width_of = [](const std::string& text) {  // in characters, not bytes
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
  };
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  std::vector<std::string> rule(widths.size());
  for (size_t i = 0; i < rule.size(); ++i) {
    while (width_of(rule[i]) < widths[i]) rule[i] += "─";
  }
  rows.insert(rows.begin() + 1, rule);
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string pad(widths[i] - width_of(row[i]), ' ');
      line += (i == 1 || i == 2 ? pad + row[i] : row[i] + pad) + "  ";
    }
    text += (text.empty() ? "" : "\n") + line.substr(0, line.find_last_not_of(' ') + 1);
  }
  return text;
}

std::string size_text(double bytes) {
  for (const char* unit : {"B", "KB", "MB"}) {
    if (bytes < 999.5) return format(unit[1] ? "%.1f %s" : "%.0f %s", bytes, unit);
    bytes /= 1000;
  }
  return format("%.1f GB", bytes);
}

std::string thousands(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), ",");
  return text;
}

}  // namespace gridpool::cli
