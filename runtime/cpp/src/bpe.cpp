#include "bpe.hpp"

#include <queue>
#include <stdexcept>

#include "text.hpp"

namespace gridpool {
namespace {

uint64_t key_of(int64_t left, int64_t right) { return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right); }

int64_t id_of(const Vocabulary& vocabulary, const std::string& token) {
  const auto found = vocabulary.find(token);
  if (found == vocabulary.end()) throw std::invalid_argument("a merge makes \"" + token + "\", which is not in the vocabulary");
  return found->second;
}

}  // namespace

Bpe::Bpe(const Json& model, const Vocabulary& vocabulary) {
  for (const char* setting : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
    const Json& value = member(model, setting);
    if (!(value.is_null() || value == false || value == "")) {
      throw std::invalid_argument(std::string("a BPE model with ") + setting + ", which is unknown here");
    }
  }
  ignore_merges_ = member(model, "ignore_merges") == true;
  if (member(model, "unk_token").is_string()) unknown_ = id_of(vocabulary, model["unk_token"]);
  const Json& merges = member(model, "merges");
  if (!merges.is_array()) throw std::invalid_argument("a BPE model without merges");
  uint32_t rank = 0;
  merges_.reserve(merges.size());
  for (const Json& one : merges) {
    std::string left, right;
    if (one.is_string()) {  // "left right", the older format
      const std::string& text = one.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == text.npos) throw std::invalid_argument("the merge \"" + text + "\" of one part");
      left = text.substr(0, space), right = text.substr(space + 1);
    } else if (one.is_array() && one.size() == 2 && one[0].is_string() && one[1].is_string()) {
      left = one[0], right = one[1];
    } else {
      throw std::invalid_argument("a merge that is not a pair");
    }
    const uint64_t key = key_of(id_of(vocabulary, left), id_of(vocabulary, right));
    merges_[key] = {rank++, id_of(vocabulary, left + right)};
  }
}

void Bpe::encode(const std::string& word, const Vocabulary& vocabulary, std::vector<int64_t>& ids) const {
  if (ignore_merges_) {
    if (const auto found = vocabulary.find(word); found != vocabulary.end()) return ids.push_back(found->second);
  }
  struct Symbol {
    int64_t id;
    int before, after;  // neighbours, -1 at the ends
  };
  std::vector<Symbol> symbols;
  for (size_t at = 0; at < word.size();) {
    const size_t length = std::max<size_t>(1, utf8_character(std::string_view(word).substr(at)));
    const auto found = vocabulary.find(word.substr(at, length));
    const int64_t id = found != vocabulary.end() ? found->second : unknown_;
    if (id >= 0) symbols.push_back({id, static_cast<int>(symbols.size()) - 1, static_cast<int>(symbols.size()) + 1});
    at += length;
  }
  if (symbols.empty()) return;
  symbols.back().after = -1;
  struct Candidate {
    uint32_t rank;
    int left;
    int64_t left_id, right_id, id;
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  std::priority_queue<Candidate> queue;  // a word may be a book without spaces: no search from the start each time
  const auto offer = [&](int left) {
    const int right = left < 0 ? -1 : symbols[static_cast<size_t>(left)].after;
    if (right < 0) return;
    const int64_t a = symbols[static_cast<size_t>(left)].id, b = symbols[static_cast<size_t>(right)].id;
    if (const auto found = merges_.find(key_of(a, b)); found != merges_.end()) queue.push({found->second.rank, left, a, b, found->second.id});
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) offer(static_cast<int>(i));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(best.left)];
    if (left.id != best.left_id || left.after < 0) continue;  // merged away meanwhile
    Symbol& right = symbols[static_cast<size_t>(left.after)];
    if (right.id != best.right_id) continue;
    left.id = best.id;
    left.after = right.after;
    if (right.after >= 0) symbols[static_cast<size_t>(right.after)].before = best.left;
    right.id = -1;
    offer(left.before);
    offer(best.left);
  }
  for (int at = 0; at >= 0; at = symbols[static_cast<size_t>(at)].after) ids.push_back(symbols[static_cast<size_t>(at)].id);
}

}  // namespace gridpool
