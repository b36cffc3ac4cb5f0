#include "gridpool/tokenizer.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "added_tokens.hpp"
#include "bpe.hpp"
#include "files.hpp"
#include "pretokenize.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

BundleError not_a_tokenizer(const std::string& name, const std::string& reason) {
  return BundleError(name + " is not a tokenizer (" + reason + "); copy the checkpoint's and export again");
}

bool flag(const Json& token, const char* name) { return member(token, name) == true; }

}  // namespace

struct Tokenizer::Parts {
  std::vector<AddedToken> raw, normalised;  // found in the text as it is, or as the normaliser leaves it
  std::vector<Normaliser> normalisers;
  std::vector<Splitter> splitters;
  Vocabulary vocabulary;
  std::optional<Bpe> bpe;  // without one, words are looked up undivided
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
  const auto is_id = [](const Json& id) { return is_integer(id) && id >= 0 && id <= std::numeric_limits<int32_t>::max(); };
  vocabulary.reserve(words.size());
  for (const auto& [token, id] : words.items()) {
    if (!is_id(id)) throw std::invalid_argument("the token \"" + token + "\" has no id");
    vocabulary[token] = id;
    tokens[id] = {token, false};
  }
  // Older files don't name their model; one with merges is BPE.
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
  if (!added.is_null() && !added.is_array()) throw std::invalid_argument("added_tokens that are not a list");
  for (const Json& one : added) {
    if (!member(one, "content").is_string() || !is_id(member(one, "id"))) throw std::invalid_argument("an added token without id and content");
    AddedToken token{one["id"], one["content"]};
    token.special = flag(one, "special"), token.normalized = flag(one, "normalized"), token.single_word = flag(one, "single_word");
    token.lstrip = flag(one, "lstrip"), token.rstrip = flag(one, "rstrip");
    tokens[token.id] = {token.content, token.special};
    if (token.normalized) token.content = normalise(token.content);
    (token.normalized ? normalised : raw).push_back(std::move(token));
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

Tokenizer Tokenizer::parsed(const std::string& text, const std::string& name) {
  try {
    return Tokenizer(std::make_unique<Parts>(parse_json(text)));
  } catch (const std::invalid_argument& error) {
    throw not_a_tokenizer(name, error.what());
  }
}

Tokenizer Tokenizer::from_json(const std::string& text) {
  return parsed(text, "the text");
}

Tokenizer Tokenizer::from_file(const std::filesystem::path& file) {
  try {
    return parsed(read_file(file), file.string());
  } catch (const std::system_error& error) {
    throw not_a_tokenizer(file.string(), error.code().message());
  }
}

std::vector<int64_t> Tokenizer::encode(std::string_view text, bool literal) const {
  if (!is_utf8(text)) throw PromptError("the text is not valid Unicode; expected UTF-8 text");
  std::vector<int64_t> ids;
  try {
    for (const Stretch& stretch : cut_at(parts_->raw, std::string(text), literal)) {
      if (stretch.id) {
        ids.push_back(*stretch.id);
        continue;
      }
      for (const Stretch& part : cut_at(parts_->normalised, parts_->normalise(stretch.text), literal)) {
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
