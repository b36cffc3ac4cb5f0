#include "table.hpp"

#include <algorithm>

#include "text.hpp"

namespace gridpool::cli {
namespace {

size_t width_of(const std::string& text) {  // in characters, not bytes
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

std::string padded(const std::string& text, size_t width, bool is_right) {
  const std::string pad(width - width_of(text), ' ');
  return is_right ? pad + text : text + pad;
}

}  // namespace

std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  std::vector<std::string> lines, rules;
  for (const size_t width : widths) {
    rules.emplace_back();
    for (size_t c = 0; c < width; ++c) rules.back() += "─";
  }
  for (const auto& row : rows) {
    std::vector<std::string> cells;
    for (size_t i = 0; i < row.size(); ++i) cells.push_back(padded(row[i], widths[i], i == 1 || i == 2));
    std::string line = join(cells, "  ");
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(line);
    if (lines.size() == 1) lines.push_back(join(rules, "  "));
  }
  return join(lines, "\n");
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
