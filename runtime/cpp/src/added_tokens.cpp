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

}  // namespace

void AddedTokens::add(AddedToken token) {
  if (token.content.empty()) return;
  by_first_[token.content[0]].push_back(tokens_.size());
  tokens_.push_back(std::move(token));
}

const AddedToken* AddedTokens::longest_at(const std::string& text, size_t at) const {
  const auto starting = by_first_.find(text[at]);
  if (starting == by_first_.end()) return nullptr;
  const AddedToken* longest = nullptr;
  for (const size_t index : starting->second) {
    const AddedToken& token = tokens_[index];
    const bool is_here = text.compare(at, token.content.size(), token.content) == 0;
    if (is_here && (!longest || token.content.size() > longest->content.size())) longest = &token;
  }
  return longest;
}

std::vector<Stretch> AddedTokens::cut(const std::string& text, bool literal) const {
  std::vector<Stretch> stretches;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* found = longest_at(text, at);
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
