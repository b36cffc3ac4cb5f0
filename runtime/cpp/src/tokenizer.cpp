#include "gridpool/tokenizer.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "bpe.hpp"
#include "files.hpp"
#include "pretokenize.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

/// A token that is looked for in the text before anything else is done to it.
struct AddedToken {
  int64_t id = 0;
  std::string content;
  bool special = false, normalized = false, single_word = false, lstrip = false, rstrip = false;
};

/// A stretch of text, or the token that stood there.
struct Stretch {
  std::string text;
  std::optional<int64_t> id;
};

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

/// Cut `text` at the tokens: leftmost first, of those the longest.
std::vector<Stretch> cut(const std::string& text, const std::vector<AddedToken>& tokens, const std::map<char, std::vector<size_t>>& first) {
  std::vector<Stretch> stretches;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* found = nullptr;
    const auto starting = first.find(text[at]);
    for (size_t i = 0; starting != first.end() && i < starting->second.size(); ++i) {
      const AddedToken& token = tokens[starting->second[i]];
      if (text.compare(at, token.content.size(), token.content) == 0 && (!found || token.content.size() > found->content.size())) found = &token;
    }
    if (!found) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + found->content.size();
    const std::string_view before = std::string_view(text).substr(0, begin), after = std::string_view(text).substr(end);
    at = end;
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

bool flag(const Json& token, const char* name) { return member(token, name) == true; }

}  // namespace

struct Tokenizer::Parts {
  std::vector<AddedToken> raw, normalised;  // matched in the text as it is, or as the normaliser leaves it
  std::map<char, std::vector<size_t>> raw_first, normalised_first;
  std::vector<Normaliser> normalisers;
  std::vector<Splitter> splitters;
  Vocabulary vocabulary;
  std::optional<Bpe> bpe;  // else a word is looked up as a whole
  std::string unknown;
  bool byte_level_decoder = false;
  std::unordered_map<int64_t, std::pair<std::string, bool>> tokens;  // by id: text, special

  explicit Parts(const Json& json);
  std::string normalise(std::string text) const {
    for (const auto& step : normalisers) text = step(std::move(text));
    return text;
  }
  void encode_words(const std::string& text, std::vector<int64_t>& ids) const;
};

Tokenizer::Parts::Parts(const Json& json) {
  const Json &model = member(json, "model"), &words = member(model, "vocab");
  if (!words.is_object()) throw std::invalid_argument("no model with a vocab");
  const auto is_id = [](const Json& id) { return is_whole(id) && id >= 0 && id <= std::numeric_limits<int32_t>::max(); };
  vocabulary.reserve(words.size());
  for (const auto& [token, id] : words.items()) {
    if (!is_id(id)) throw std::invalid_argument("the token \"" + token + "\" has no id");
    vocabulary[token] = id;
    tokens[id] = {token, false};
  }
  // Files from before models were named hold a BPE model where there are merges.
  const Json& type = member(model, "type");
  const std::string kind = type.is_string() ? type.get<std::string>() : model.contains("merges") ? "BPE" : "";
  if (kind == "BPE") {
    bpe.emplace(model, vocabulary);
  } else if (kind == "WordLevel") {
    if (member(model, "unk_token").is_string()) unknown = model["unk_token"];
  } else {
    throw std::invalid_argument("the model " + kind + " is unknown here; known: BPE, WordLevel");
  }
  normalisers = normalisers_of(member(json, "normalizer"));
  splitters = splitters_of(member(json, "pre_tokenizer"));
  const Json& decoder = member(json, "decoder");
  byte_level_decoder = member(decoder, "type") == "ByteLevel";
  if (!decoder.is_null() && !byte_level_decoder) throw std::invalid_argument("a decoder that is unknown here; known: ByteLevel, or none");
  const Json& added = member(json, "added_tokens");
  if (!added.is_null() && !added.is_array()) throw std::invalid_argument("added_tokens that are no list");
  for (const Json& one : added) {
    if (!member(one, "content").is_string() || !is_id(member(one, "id"))) throw std::invalid_argument("an added token without id and content");
    AddedToken token{one["id"], one["content"], flag(one, "special"), flag(one, "normalized"), flag(one, "single_word"), flag(one, "lstrip"), flag(one, "rstrip")};
    tokens[token.id] = {token.content, token.special};
    if (token.normalized) token.content = normalise(token.content);
    if (token.content.empty()) continue;
    auto& list = token.normalized ? normalised : raw;
    (token.normalized ? normalised_first : raw_first)[token.content[0]].push_back(list.size());
    list.push_back(std::move(token));
  }
}

void Tokenizer::Parts::encode_words(const std::string& text, std::vector<int64_t>& ids) const {
  Words words = {text};
  for (const auto& splitter : splitters) {
    Words pieces;
    for (auto& word : words) splitter(std::move(word), pieces);
    words = std::move(pieces);
  }
  for (const auto& word : words) {
    if (word.empty()) continue;
    if (bpe) {
      bpe->encode(word, vocabulary, ids);
      continue;
    }
    auto found = vocabulary.find(word);
    if (found == vocabulary.end()) found = vocabulary.find(unknown);
    if (found == vocabulary.end()) throw PromptError("the tokenizer has no id for \"" + word + "\"; ask in words that the model knows");
    ids.push_back(found->second);
  }
}

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::from_json(const std::string& text) {
  Json json;
  std::string why;
  if (!parse_json(text, json, why)) throw BundleError("the text is no tokenizer (" + why + "); copy the checkpoint's own and export again");
  try {
    return Tokenizer(std::make_unique<Parts>(json));
  } catch (const std::invalid_argument& error) {
    throw BundleError("the text is no tokenizer (" + std::string(error.what()) + "); copy the checkpoint's own and export again");
  }
}

Tokenizer Tokenizer::from_file(const std::filesystem::path& file) {
  try {
    return from_json(read_file(file));
  } catch (const BundleError& error) {
    throw BundleError(file.string() + std::string(error.what()).substr(std::string("the text").size()));
  } catch (const std::system_error& error) {
    throw BundleError(file.string() + " is no tokenizer (" + error.code().message() + "); copy the checkpoint's own and export again");
  }
}

std::vector<int64_t> Tokenizer::encode(std::string_view text) const {
  if (!is_utf8(text)) throw PromptError("the text is not valid Unicode; expected UTF-8 text");
  std::vector<int64_t> ids;
  try {
    for (const Stretch& stretch : cut(std::string(text), parts_->raw, parts_->raw_first)) {
      if (stretch.id) {
        ids.push_back(*stretch.id);
        continue;
      }
      for (const Stretch& part : cut(parts_->normalise(stretch.text), parts_->normalised, parts_->normalised_first)) {
        if (part.id) {
          ids.push_back(*part.id);
        } else {
          parts_->encode_words(part.text, ids);
        }
      }
    }
  } catch (const std::invalid_argument& error) {
    throw PromptError(std::string(error.what()) + "; ask a shorter question");
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids) const {
  std::string text;
  bool is_first = true;
  for (const int64_t id : ids) {
    const auto found = parts_->tokens.find(id);
    if (found == parts_->tokens.end() || found->second.second) continue;
    if (parts_->byte_level_decoder) {
      text += bytes_of(found->second.first);
    } else {
      text += (is_first ? "" : " ") + found->second.first;
    }
    is_first = false;
  }
  return lossy_utf8(text);
}

std::vector<std::string> Tokenizer::special_tokens() const {
  std::vector<std::string> texts;
  for (const auto& [id, token] : parts_->tokens) {
    if (token.second) texts.push_back(token.first);
  }
  std::sort(texts.begin(), texts.end());
  return texts;
}

std::string TextStream::push(int64_t id) {
  ids_.push_back(id);
  const std::string text = tokenizer_.decode(ids_);
  constexpr std::string_view replacement = "\xef\xbf\xbd";
  const bool is_open = text.size() >= replacement.size() && text.compare(text.size() - replacement.size(), replacement.size(), replacement) == 0;
  return is_open ? "" : take(text);
}

std::string TextStream::finish() { return take(tokenizer_.decode(ids_)); }

std::string TextStream::take(const std::string& text) {
  const std::string piece = text.size() > sent_ ? text.substr(sent_) : "";
  sent_ = std::max(sent_, text.size());
  return piece;
}

}  // namespace gridpool
