// Any bytes as a question, with the tokenizer.json of the working directory: ids of its vocabulary, or an error of one line.
#include <cstdlib>
#include <gridpool/tokenizer.hpp>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokenizer = gridpool::Tokenizer::from_file("tokenizer.json");
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const auto ids = tokenizer.encode(text);
    gridpool::TextStream stream(tokenizer);
    std::string pieces;
    for (const auto id : ids) pieces += stream.push(id);
    pieces += stream.finish();
    if (pieces.size() > 3 * tokenizer.decode(ids).size()) std::abort();
  } catch (const gridpool::UserError& error) {
    if (std::string(error.what()).empty()) std::abort();
  }
  return 0;
}
