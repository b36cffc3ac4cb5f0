#include "gridpool/gridpool.h"

#include "gridpool/gridpool.hpp"

struct gridpool_chat {
  gridpool::VideoChat chat;
};

struct gridpool_tokens {
  gridpool::VisualTokens visual;
  std::vector<float> values;
};

namespace {

thread_local std::string last_error;

/// Run `work`; nothing that is thrown crosses the C interface.
template <typename Work>
int guarded(const Work& work) {
  try {
    work();
    return GRIDPOOL_OK;
  } catch (const gridpool::UserError& error) {
    last_error = error.what();
    return GRIDPOOL_USER_ERROR;
  } catch (const std::exception& error) {
    last_error = std::string("internal error: ") + error.what();
    return GRIDPOOL_BUG;
  }
}

std::string text_or(const char* text, const char* otherwise) { return text ? text : otherwise; }

void require(const void* argument, const char* name) {
  if (!argument) throw gridpool::UsageError(std::string(name) + " is NULL, expected a value");
}

}  // namespace

const char* gridpool_version(void) { return GRIDPOOL_VERSION; }
const char* gridpool_last_error(void) { return last_error.c_str(); }

gridpool_chat* gridpool_open(const char* bundle, const gridpool_engine_options* options) {
  gridpool_chat* opened = nullptr;
  guarded([&] {
    require(bundle, "bundle");
    const gridpool_engine_options chosen = options ? *options : gridpool_engine_options{};
    const gridpool::EngineOptions engine{text_or(chosen.device, "auto"), chosen.threads, text_or(chosen.onnxruntime, "")};
    opened = new gridpool_chat{gridpool::VideoChat::open(gridpool::Bundle::open(bundle), text_or(chosen.backend, "auto"), engine)};
  });
  return opened;
}

void gridpool_close(gridpool_chat* chat) { delete chat; }

gridpool_tokens* gridpool_encode(gridpool_chat* chat, const char* video) {
  gridpool_tokens* tokens = nullptr;
  guarded([&] {
    require(chat, "chat");
    require(video, "video");
    gridpool::VisualTokens visual = chat->chat.vision().encode(video);
    std::vector<float> values = visual.tokens.floats();
    tokens = new gridpool_tokens{std::move(visual), std::move(values)};
  });
  return tokens;
}

void gridpool_tokens_free(gridpool_tokens* tokens) { delete tokens; }

const float* gridpool_tokens_data(const gridpool_tokens* tokens, int64_t* rows, int64_t* columns) {
  if (!tokens) return nullptr;
  if (rows) *rows = tokens->visual.tokens.shape[0];
  if (columns) *columns = tokens->visual.tokens.shape[1];
  return tokens->values.data();
}

int gridpool_ask(gridpool_chat* chat, const gridpool_tokens* tokens, const char* question, const gridpool_ask_options* options,
                 gridpool_text each, void* user) {
  return guarded([&] {
    require(chat, "chat");
    require(tokens, "tokens");
    require(question, "question");
    gridpool::AskOptions ask;
    if (options && options->max_new_tokens != 0) ask.max_new_tokens = options->max_new_tokens;
    if (options) ask.sampling.temperature = options->temperature;
    if (options && options->top_p != 0) ask.sampling.top_p = options->top_p;
    if (options && options->seed >= 0) ask.sampling.seed = static_cast<uint64_t>(options->seed);
    bool wanted = each != nullptr;
    chat->chat.ask_about(
        tokens->visual, question, [&](std::string_view text) { wanted = wanted && each(text.data(), text.size(), user) == 0; }, ask);
  });
}
