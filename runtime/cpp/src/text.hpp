// Text: joined lists, formatted numbers, UTF-8.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace gridpool {

std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ");

/// The parts one after the other, each as a stream prints it.
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

/// printf to a string, for numbers with a format.
__attribute__((format(printf, 1, 2))) std::string format(const char* pattern, ...);

bool is_utf8(std::string_view text);

/// Length in bytes of the well-formed UTF-8 character at the front of `text`, 0 if there is none.
/// consumed: how many bytes one U+FFFD replaces there (the longest prefix of a well-formed character).
size_t utf8_character(std::string_view text, size_t* consumed = nullptr);

/// The code point of a well-formed character.
char32_t code_point(std::string_view character);

void append_utf8(std::string& text, char32_t code);

/// Bytes as text; what is not UTF-8 becomes U+FFFD, one for each longest prefix of a character.
std::string lossy_utf8(std::string_view bytes);

/// Unicode's White_Space and the separators U+001C to U+001F: what Python's str.strip removes.
bool is_space(char32_t code);

/// Whether `text` (UTF-8) is empty or only white space.
bool is_blank(std::string_view text);

}  // namespace gridpool
