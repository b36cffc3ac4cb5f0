// Small things about text: lists joined, Python's spelling of a string, UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gridpool {

std::string join(const std::vector<std::string>& parts, std::string_view separator);

/// As Python writes a str in a message: 'it', or "it's".
std::string python_str(std::string_view text);

/// As Python writes a list of str, or of int.
std::string listed(const std::vector<std::string>& items);

/// printf to a string.
__attribute__((format(printf, 1, 2))) std::string format(const char* pattern, ...);

bool is_utf8(std::string_view text);

/// Length in bytes of the well-formed UTF-8 character at the front of `text`, 0 where there is none.
/// consumed: how many bytes one U+FFFD stands for there (the longest prefix of a well-formed character).
size_t utf8_character(std::string_view text, size_t* consumed = nullptr);

/// The code point of a well-formed character.
char32_t code_point(std::string_view character);

void append_utf8(std::string& text, char32_t code);

/// Bytes as text; what is no UTF-8 becomes U+FFFD, one for each longest prefix of a character.
std::string lossy_utf8(std::string_view bytes);

/// Unicode's White_Space, and the four separators U+001C to U+001F, which Python's str.strip takes too.
bool is_python_space(char32_t code);

/// Whether `text` (UTF-8) is empty or only white space.
bool is_blank(std::string_view text);

}  // namespace gridpool
