#include "pretokenize.hpp"

#include <oniguruma.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "text.hpp"

namespace gridpool {
namespace {

// Rust's \w (Unicode TR18), which the library uses for words; Oniguruma's is narrower.
constexpr const char* kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}";
// GPT-2's pattern, which a ByteLevel pre-tokeniser uses when it is told to use one.
constexpr const char* kGpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/// A regular expression over UTF-8, by Oniguruma: the library that Hugging Face's tokenizers uses.
class Pattern {
 public:
  /// std::invalid_argument for a pattern that does not compile.
  explicit Pattern(const std::string& pattern) {
    static const bool initialised = [] {
      OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
      onig_set_match_stack_limit_size(1 << 22);  // a hostile file's pattern may try everything
      onig_set_retry_limit_in_match(10000000);
      return onig_initialize(encodings, 1) == ONIG_NORMAL;
    }();
    if (!is_utf8(pattern) || !initialised) throw std::invalid_argument("a pattern that is not UTF-8");
    const auto* text = reinterpret_cast<const OnigUChar*>(pattern.data());
    OnigErrorInfo info{};
    regex_t* compiled = nullptr;
    const int status = onig_new(&compiled, text, text + pattern.size(), ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_RUBY, &info);
    if (status != ONIG_NORMAL) {
      OnigUChar reason[ONIG_MAX_ERROR_MESSAGE_LEN] = {};
      onig_error_code_to_str(reason, status, &info);
      throw std::invalid_argument("the pattern \"" + pattern + "\": " + lossy_utf8(reinterpret_cast<const char*>(reason)));
    }
    regex_.reset(compiled, onig_free);
  }

  /// [begin, end) of each match, left to right, none empty. std::invalid_argument for a text on which it takes too long.
  std::vector<std::pair<size_t, size_t>> matches(const std::string& text) const {
    const std::unique_ptr<OnigRegion, void (*)(OnigRegion*)> region(onig_region_new(), [](OnigRegion* one) { onig_region_free(one, 1); });
    const auto *start = reinterpret_cast<const OnigUChar*>(text.data()), *end = start + text.size();
    std::vector<std::pair<size_t, size_t>> found;
    for (size_t from = 0; from < text.size();) {
      const int at = onig_search(regex_.get(), start, end, start + from, end, region.get(), ONIG_OPTION_NONE);
      if (at == ONIG_MISMATCH) break;
      if (at < 0) throw std::invalid_argument("the tokenizer's pattern takes too long on this text");
      const auto first = static_cast<size_t>(region->beg[0]), last = static_cast<size_t>(region->end[0]);
      if (last > first) found.emplace_back(first, last);
      from = last > first ? last : last + std::max<size_t>(1, utf8_character(std::string_view(text).substr(last)));
    }
    return found;
  }

 private:
  std::shared_ptr<re_pattern_buffer> regex_;
};

/// What to do with what a pattern matched, and with what is between; the names are Hugging Face's.
Splitter split(const Json& settings) {
  const Json& pattern = member(settings, "pattern");
  std::string source;
  if (member(pattern, "Regex").is_string()) {
    source = pattern["Regex"];
  } else if (member(pattern, "String").is_string()) {
    for (const char c : pattern["String"].get<std::string>()) {
      if (std::string_view("\\.+*?()[]{}|^$#-& ~").find(c) != std::string_view::npos) source += '\\';
      source += c;
    }
  } else {
    throw std::invalid_argument("a Split without a pattern");
  }
  const Pattern compiled(source);
  const std::string behaviour = member(settings, "behavior").is_string() ? settings["behavior"].get<std::string>() : "";
  if (behaviour != "Isolated" && behaviour != "Removed" && behaviour != "MergedWithPrevious" && behaviour != "MergedWithNext" &&
      behaviour != "Contiguous") {
    throw std::invalid_argument("a Split whose behavior is \"" + behaviour + "\"");
  }
  const bool invert = member(settings, "invert").is_boolean() && settings["invert"].get<bool>();
  return [=](const std::string& text, Words& words) {
    struct Piece {
      size_t begin, end;
      bool matched;
    };
    std::vector<Piece> pieces;
    size_t before = 0;
    const auto add = [&](size_t begin, size_t end, bool matched) {
      if (begin < end) pieces.push_back({begin, end, matched != invert});
    };
    for (const auto& [begin, end] : compiled.matches(text)) {
      add(before, begin, false);
      add(begin, end, true);
      before = end;
    }
    add(before, text.size(), false);
    std::vector<Piece> kept;
    for (const Piece& piece : pieces) {
      const bool joins = !kept.empty() &&
                         ((behaviour == "MergedWithPrevious" && piece.matched && !kept.back().matched) ||
                          (behaviour == "MergedWithNext" && kept.back().matched && !piece.matched) ||
                          (behaviour == "Contiguous" && kept.back().matched == piece.matched));
      if (joins) {
        kept.back().end = piece.end;
        kept.back().matched = piece.matched && behaviour != "MergedWithNext";
      } else if (behaviour != "Removed" || !piece.matched) {
        kept.push_back(piece);
      }
    }
    for (const Piece& piece : kept) words.push_back(text.substr(piece.begin, piece.end - piece.begin));
  };
}

Splitter by_pattern(const std::string& pattern) {
  const Pattern compiled(pattern);
  return [=](const std::string& text, Words& words) {
    for (const auto& [begin, end] : compiled.matches(text)) words.push_back(text.substr(begin, end - begin));
  };
}

Splitter byte_level(const Json& settings) {
  const bool prefix = member(settings, "add_prefix_space") != false, regex = member(settings, "use_regex") != false;
  const Splitter pieces = regex ? by_pattern(kGpt2) : [](std::string text, Words& words) { words.push_back(std::move(text)); };
  return [=](std::string text, Words& words) {
    if (prefix && text.rfind(' ', 0) != 0) text.insert(0, 1, ' ');
    Words found;
    pieces(std::move(text), found);
    for (const auto& word : found) words.push_back(byte_characters(word));
  };
}

Normaliser unicode_form(int options) {
  return [options](const std::string& text) {
    utf8proc_uint8_t* mapped = nullptr;
    const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                                     &mapped, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | options));
    if (length < 0) throw std::invalid_argument(utf8proc_errmsg(length));
    std::string result(reinterpret_cast<const char*>(mapped), static_cast<size_t>(length));
    std::free(mapped);
    return result;
  };
}

std::string lowercase(const std::string& text) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    char32_t code = 0;
    const size_t length = utf8_character(std::string_view(text).substr(at), &code);
    if (code == 0x130) {  // the only letter whose lower case is two characters
      result += "i\xcc\x87";
    } else {
      append_utf8(result, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))));
    }
    at += length;
  }
  return result;
}

const std::array<char32_t, 256>& characters() {
  static const auto table = [] {
    std::array<char32_t, 256> made{};
    char32_t next = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      made[byte] = printable ? byte : next++;
    }
    return made;
  }();
  return table;
}

bool is_word(std::string_view character) {
  static const Pattern word(std::string("[") + kWord + "]");
  return !character.empty() && !word.matches(std::string(character)).empty();
}

std::string type_of(const Json& value) {
  if (!member(value, "type").is_string()) throw std::invalid_argument("a step without a type");
  return value["type"];
}

template <typename Step>
void collect(const Json& value, const char* list, std::vector<Step>& steps, Step (*make)(const std::string&, const Json&), int depth = 0) {
  if (value.is_null()) return;
  const std::string type = type_of(value);
  if (type != "Sequence") {
    steps.push_back(make(type, value));
  } else if (!member(value, list).is_array() || depth > 16) {
    throw std::invalid_argument(std::string("a Sequence without ") + list);
  } else {
    for (const Json& one : value[list]) collect(one, list, steps, make, depth + 1);
  }
}

Normaliser make_normaliser(const std::string& type, const Json&) {
  if (type == "NFC") return unicode_form(UTF8PROC_COMPOSE);
  if (type == "NFD") return unicode_form(UTF8PROC_DECOMPOSE);
  if (type == "NFKC") return unicode_form(UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
  if (type == "NFKD") return unicode_form(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  if (type == "Lowercase") return lowercase;
  throw std::invalid_argument("the normalizer " + type + " is unknown here; known: NFC, NFD, NFKC, NFKD, Lowercase");
}

Splitter make_splitter(const std::string& type, const Json& settings) {
  if (type == "Split") return split(settings);
  if (type == "ByteLevel") return byte_level(settings);
  if (type == "Whitespace") return by_pattern(std::string("[") + kWord + "]+|[^\\s" + kWord + "]+");
  if (type == "WhitespaceSplit") return by_pattern("\\S+");
  throw std::invalid_argument("the pre_tokenizer " + type + " is unknown here; known: Split, ByteLevel, Whitespace, WhitespaceSplit");
}

}  // namespace

std::vector<Normaliser> normalisers_of(const Json& value) {
  std::vector<Normaliser> steps;
  collect(value, "normalizers", steps, make_normaliser);
  return steps;
}

std::vector<Splitter> splitters_of(const Json& value) {
  std::vector<Splitter> steps;
  collect(value, "pretokenizers", steps, make_splitter);
  return steps;
}

std::string byte_characters(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) append_utf8(text, characters()[static_cast<unsigned char>(byte)]);
  return text;
}

std::string bytes_of(std::string_view token) {
  static const auto back = [] {
    std::unordered_map<char32_t, char> made;
    for (size_t byte = 0; byte < 256; ++byte) made[characters()[byte]] = static_cast<char>(static_cast<unsigned char>(byte));
    return made;
  }();
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    char32_t code = 0;
    const size_t length = utf8_character(token.substr(at), &code);
    const auto found = length ? back.find(code) : back.end();
    if (found == back.end()) return std::string(token);
    bytes += found->second;
    at += length;
  }
  return bytes;
}

bool starts_with_word(std::string_view text) { return is_word(text.substr(0, utf8_character(text))); }

bool ends_with_word(std::string_view text) {
  size_t start = text.size();
  while (start > 0 && (static_cast<unsigned char>(text[start - 1]) & 0xc0) == 0x80) --start;
  return start > 0 && is_word(text.substr(start - 1));
}

}  // namespace gridpool
