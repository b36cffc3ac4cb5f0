// Text: joined lists, formatted numbers, UTF-8.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace gridpool {

inline bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

inline std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ") {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i) text += separator;
    text += parts[i];
  }
  return text;
}

/// The parts one after the other, each as a stream prints it.
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

/// printf to a string of at most 127 bytes, for numbers with a format.
__attribute__((format(printf, 1, 2))) std::string format(const char* pattern, ...);

bool is_utf8(std::string_view text);

/// Length in bytes of the well-formed UTF-8 character at the front of `text`, 0 if there is none; `code` becomes its code point.
size_t utf8_character(std::string_view text, char32_t* code = nullptr);

void append_utf8(std::string& text, char32_t code);

/// Bytes as text; what is not UTF-8 becomes U+FFFD, one for each longest prefix of a character.
std::string lossy_utf8(std::string_view bytes);

/// Whether `text` (UTF-8) is empty or only what Python's str.strip removes: Unicode's White_Space and U+001C to U+001F.
bool is_blank(std::string_view text);

}  // namespace gridpool
