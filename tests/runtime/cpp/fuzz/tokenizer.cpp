// Any bytes as tokenizer.json: a tokenizer whose ids and texts can be asked for, or an error of one line.
#include <gridpool/tokenizer.hpp>

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto tokenizer = gridpool::Tokenizer::from_json({reinterpret_cast<const char*>(data), size});
    for (const char* text : {"", "what shape ?", "<|im_end|> İé\u0301  12\n x_y 's", "\xff"}) {
      try {
        const auto ids = tokenizer.encode(text);
        tokenizer.decode(ids);
        gridpool::TextStream stream(tokenizer);
        for (const auto id : ids) stream.push(id);
        stream.finish();
      } catch (const gridpool::UserError& error) {
        if (std::string(error.what()).empty()) std::abort();
      }
    }
    tokenizer.special_tokens();
  } catch (const gridpool::UserError& error) {
    if (std::string(error.what()).empty()) std::abort();
  }
  return 0;
}
