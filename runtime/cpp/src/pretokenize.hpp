// What happens to text before the model sees words: normalising it, and splitting it.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "json.hpp"

namespace gridpool {

using Normaliser = std::function<std::string(std::string)>;
using Words = std::vector<std::string>;
using Splitter = std::function<void(std::string, Words&)>;  ///< appends the pieces of one text

/// The steps that tokenizer.json's "normalizer" and "pre_tokenizer" name; std::invalid_argument for an unknown one.
std::vector<Normaliser> normalisers_of(const Json& value);
std::vector<Splitter> splitters_of(const Json& value);

/// Bytes as the 256 printable characters that byte-level vocabularies are written in, and back.
/// `bytes_of` returns the token itself if one of its characters stands for no byte.
std::string byte_characters(std::string_view bytes);
std::string bytes_of(std::string_view token);

/// Whether the character before `end`, or at `start`, belongs to a word.
bool ends_with_word(std::string_view text);
bool starts_with_word(std::string_view text);

}  // namespace gridpool
