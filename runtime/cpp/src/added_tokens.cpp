#include "added_tokens.hpp"

#include <algorithm>

#include "pretokenize.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

size_t spaces_at_end(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t start = end - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xc0) == 0x80) --start;
    if (!is_blank(text.substr(start, end - start))) break;
    end = start;
  }
  return text.size() - end;
}

size_t spaces_at_start(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = std::max<size_t>(1, utf8_character(text.substr(at)));
    if (!is_blank(text.substr(at, length))) break;
    at += length;
  }
  return at;
}

/// The longest token that begins at `at`; null if none does.
const AddedToken* longest_at(const std::vector<AddedToken>& tokens, const std::string& text, size_t at) {
  const AddedToken* longest = nullptr;
  size_t length = 0;
  for (const AddedToken& token : tokens) {
    const std::string& content = token.content;
    if (content.size() > length && text.compare(at, content.size(), content) == 0) longest = &token, length = content.size();
  }
  return longest;
}

}  // namespace

std::vector<Stretch> cut_at(const std::vector<AddedToken>& tokens, const std::string& text, bool literal) {
  std::vector<Stretch> stretches;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* found = longest_at(tokens, text, at);
    if (!found) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + found->content.size();
    const std::string_view before = std::string_view(text).substr(0, begin), after = std::string_view(text).substr(end);
    at = end;
    if (literal && found->special) continue;
    if (found->single_word && (ends_with_word(before) || starts_with_word(after))) continue;
    if (found->lstrip) begin = std::max(done, begin - spaces_at_end(before));
    if (found->rstrip) end += spaces_at_start(after);
    if (begin > done) stretches.push_back({text.substr(done, begin - done), std::nullopt});
    stretches.push_back({"", found->id});
    done = at = end;
  }
  if (done < text.size()) stretches.push_back({text.substr(done), std::nullopt});
  return stretches;
}

}  // namespace gridpool
