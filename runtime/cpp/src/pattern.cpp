#include "pattern.hpp"

#include <oniguruma.h>

#include <algorithm>
#include <stdexcept>

#include "text.hpp"

namespace gridpool {

Pattern::Pattern(const std::string& pattern) {
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

std::vector<std::pair<size_t, size_t>> Pattern::matches(const std::string& text) const {
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

}  // namespace gridpool
