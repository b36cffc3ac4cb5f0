#include "text.hpp"

#include <utf8proc.h>

#include <cstdarg>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace gridpool {

static bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

std::string format(const char* pattern, ...) {
  char text[128];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

size_t utf8_character(std::string_view text, char32_t* code) {
  utf8proc_int32_t decoded = 0;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto length = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size()), &decoded);
  if (code) *code = static_cast<char32_t>(decoded);
  return length > 0 ? static_cast<size_t>(length) : 0;
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_character(text.substr(at));
    if (length == 0) return false;
    at += length;
  }
  return true;
}

void append_utf8(std::string& text, char32_t code) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

std::string lossy_utf8(std::string_view bytes) {
  using nlohmann::json;
  return json::parse(json(std::string(bytes)).dump(-1, ' ', false, json::error_handler_t::replace)).get<std::string>();
}

bool is_blank(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    char32_t code = 0;
    const size_t length = utf8_character(text.substr(at), &code);
    if (length == 0 || !is_space(code)) return false;
    at += length;
  }
  return true;
}

}  // namespace gridpool
