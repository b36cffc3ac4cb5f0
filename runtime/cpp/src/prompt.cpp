#include "gridpool/prompt.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "files.hpp"
#include "npy.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

/// The embedding table, memory-mapped: only the rows that a prompt uses are read.
struct Table {
  MappedFile file;
  TensorView view;
};

Table open_table(const std::filesystem::path& path) {
  try {
    MappedFile file(path);
    const TensorView view = npy_view({reinterpret_cast<const char*>(file.data()), file.size()});
    if (view.shape.size() != 2 || (view.dtype != DType::float32 && view.dtype != DType::float16)) {
      throw std::invalid_argument("it is no float array [V, D]");
    }
    return {std::move(file), view};
  } catch (const std::invalid_argument& error) {
    throw BundleError(path.string() + " is no table of embeddings (" + error.what() + "); export the bundle again");
  } catch (const std::system_error& error) {
    throw BundleError(path.string() + " can't be read: " + error.code().message() + "; copy or export it again");
  }
}

}  // namespace

struct Prompt::Parts {
  PromptFacts facts;
  std::string bundle;
  std::set<int64_t> eos;
  Tokenizer tokenizer;
  Table table;

  size_t row_bytes() const { return static_cast<size_t>(table.view.shape[1]) * size_of(table.view.dtype); }
  void copy_row(int64_t id, std::byte* to) const {
    if (id < 0 || id >= table.view.shape[0]) {
      throw BundleError(format("%s has no embedding for token %lld, its table has %lld rows; export the bundle again", bundle.c_str(),
                               static_cast<long long>(id), static_cast<long long>(table.view.shape[0])));
    }
    std::memcpy(to, static_cast<const std::byte*>(table.view.data) + static_cast<size_t>(id) * row_bytes(), row_bytes());
  }
};

Prompt::Prompt(const Bundle& bundle)
    : parts_(new Parts{bundle.manifest().prompt,
                       bundle.path().string(),
                       {bundle.manifest().prompt.eos_token_ids.begin(), bundle.manifest().prompt.eos_token_ids.end()},
                       Tokenizer::from_file(bundle.file("llm/tokenizer.json")),
                       open_table(bundle.file("llm/embed_tokens.npy"))}) {
  if (!parts_->facts.has_text) {
    throw BundleError(parts_->bundle + " has no around_question in its manifest's prompt: it was exported before the C++ runtime, or its "
                      "chat template rewrites questions; export it again, or ask with `python -m runtime run`");
  }
}
Prompt::Prompt(Prompt&&) noexcept = default;
Prompt::~Prompt() = default;

PromptIds Prompt::ids(const std::string& question) const {
  if (!is_utf8(question)) throw PromptError("the question is not valid Unicode; expected UTF-8 text");
  if (is_blank(question)) throw PromptError("the question is empty; expected some text");
  for (const auto& token : parts_->tokenizer.special_tokens()) {
    if (question.find(token) != question.npos) {
      throw PromptError("the question contains \"" + token + "\", a special token of this model; leave it out");
    }
  }
  const std::vector<int64_t> ids = parts_->tokenizer.encode(parts_->facts.before + question + parts_->facts.after);
  const auto at = std::find(ids.begin(), ids.end(), parts_->facts.video_token_id);
  const auto times = std::count(ids.begin(), ids.end(), parts_->facts.video_token_id);
  if (times != 1) {
    throw PromptError(format("the chat template puts \"%s\" %lld times into the prompt, expected once", parts_->facts.video_token.c_str(),
                             static_cast<long long>(times)));
  }
  return {{ids.begin(), at}, {at + 1, ids.end()}};
}

Tensor Prompt::embed(const PromptIds& ids, const TensorView& visual_tokens) const {
  const TensorView& table = parts_->table.view;
  const int64_t hidden = table.shape[1];
  if (visual_tokens.shape.size() != 2 || visual_tokens.shape[1] != hidden) {
    throw EngineError("the visual tokens do not have the embeddings' width; export the bundle again");
  }
  Tensor result = Tensor::empty(table.dtype, {1, ids.size() + visual_tokens.shape[0], hidden});
  std::byte* to = result.data.data();
  for (const int64_t id : ids.before) parts_->copy_row(id, to), to += parts_->row_bytes();
  const Tensor visual = cast(visual_tokens, table.dtype);
  std::memcpy(to, visual.data.data(), visual.data.size());
  to += visual.data.size();
  for (const int64_t id : ids.after) parts_->copy_row(id, to), to += parts_->row_bytes();
  return result;
}

Tensor Prompt::embed(int64_t id) const {
  Tensor result = Tensor::empty(parts_->table.view.dtype, {1, 1, parts_->table.view.shape[1]});
  parts_->copy_row(id, result.data.data());
  return result;
}

const Tokenizer& Prompt::tokenizer() const { return parts_->tokenizer; }
const std::set<int64_t>& Prompt::eos() const { return parts_->eos; }

}  // namespace gridpool
