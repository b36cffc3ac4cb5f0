// The nearest known name to a misspelt one, by the measure of Python's difflib (Ratcliff and Obershelp): twice the
// characters in common blocks over the characters of both.
#include "gridpool/error.hpp"

#include <algorithm>
#include <set>

namespace gridpool {
namespace {

size_t matching(const std::string& a, size_t a0, size_t a1, const std::string& b, size_t b0, size_t b1) {
  size_t best = 0, at_a = a0, at_b = b0;
  for (size_t i = a0; i < a1; ++i) {
    for (size_t j = b0; j < b1; ++j) {
      size_t length = 0;
      while (i + length < a1 && j + length < b1 && a[i + length] == b[j + length]) ++length;
      if (length > best) best = length, at_a = i, at_b = j;
    }
  }
  if (best == 0) return 0;
  return best + matching(a, a0, at_a, b, b0, at_b) + matching(a, at_a + best, a1, b, at_b + best, b1);
}

double similarity(const std::string& a, const std::string& b) {
  const size_t both = a.size() + b.size();
  return both == 0 ? 1.0 : 2.0 * static_cast<double>(matching(a, 0, a.size(), b, 0, b.size())) / static_cast<double>(both);
}

}  // namespace

std::string nearest(const std::string& name, std::vector<std::string> known) {
  const std::set<std::string> sorted(known.begin(), known.end());
  // The search is cubic: a name of a length that nobody types has no near one.
  std::pair<double, std::string> best{0.0, ""};
  for (const auto& candidate : sorted) {
    if (name.size() > 200) break;
    best = std::max(best, {similarity(candidate, name), candidate});
  }
  if (best.first >= 0.5) return "; did you mean \"" + best.second + "\"?";
  std::string list = "; known: ";
  for (const auto& candidate : sorted) list += (candidate == *sorted.begin() ? "" : ", ") + candidate;
  return list;
}

}  // namespace gridpool
