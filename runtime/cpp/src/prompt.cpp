#include "gridpool/prompt.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "files.hpp"
#include "npy.hpp"
#include "refusal.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

/// A .npy file of the bundle, memory-mapped.
struct Array {
  MappedFile file;
  TensorView view;
};

BundleError not_a_table(const std::filesystem::path& path, const std::string& reason) {
  return malformed(path.string() + " is not a table of embeddings (" + reason + ")");
}

Array open_array(const std::filesystem::path& path) {
  try {
    MappedFile file(path);
    const TensorView view = npy_view({reinterpret_cast<const char*>(file.data()), file.size()});
    return {std::move(file), view};
  } catch (const std::invalid_argument& error) {
    throw not_a_table(path, error.what());
  } catch (const std::system_error& error) {
    throw unreadable(path, error.code());
  }
}

/// The embedding table [V, D]: only the rows that a prompt uses are read. An int8 table has a scale for each row.
class Table {
 public:
  explicit Table(const Bundle& bundle) : bundle_(bundle.path().string()), rows_(open_array(bundle.file("llm/embed_tokens.npy"))) {
    const bool is_float = rows_.view.dtype == DType::float32 || rows_.view.dtype == DType::float16;
    if (rows_.view.shape.size() != 2 || (!is_float && rows_.view.dtype != DType::int8)) {
      throw not_a_table(bundle.path() / "llm/embed_tokens.npy", "expected a float or int8 array [V, D]");
    }
    if (is_float) return;
    scales_.emplace(open_array(bundle.file("llm/embed_scales.npy")));
    const TensorView& scales = scales_->view;
    if (scales.dtype != DType::float32 || scales.shape.size() != 1 || scales.shape[0] != rows_.view.shape[0]) {
      throw malformed(concat((bundle.path() / "llm/embed_scales.npy").string(), " is not a float32 array of ", rows_.view.shape[0], " scales"));
    }
  }

  DType dtype() const { return scales_ ? DType::float32 : rows_.view.dtype; }
  int64_t hidden() const { return rows_.view.shape[1]; }
  size_t row_bytes() const { return static_cast<size_t>(hidden()) * size_of(dtype()); }

  void copy_row(int64_t id, std::byte* to) const {
    if (id < 0 || id >= rows_.view.shape[0]) {
      throw malformed(concat(bundle_, " has no embedding for token ", id, ", its table has ", rows_.view.shape[0], " rows"));
    }
    const size_t count = static_cast<size_t>(hidden());
    const auto* row = static_cast<const std::byte*>(rows_.view.data) + static_cast<size_t>(id) * count * size_of(rows_.view.dtype);
    if (!scales_) {
      std::memcpy(to, row, row_bytes());
      return;
    }
    float scale = 0;  // neither file promises an alignment
    std::memcpy(&scale, static_cast<const std::byte*>(scales_->view.data) + static_cast<size_t>(id) * sizeof scale, sizeof scale);
    for (size_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(static_cast<int8_t>(row[i])) * scale;
      std::memcpy(to + i * sizeof value, &value, sizeof value);
    }
  }

 private:
  std::string bundle_;
  Array rows_;
  std::optional<Array> scales_;
};

/// Where the first of `tokens` is in `text` from `at` on, of two that begin there the longer; the end and "" if there is none.
std::pair<size_t, std::string> first_of(const std::vector<std::string>& tokens, const std::string& text, size_t at) {
  std::pair<size_t, std::string> first{text.size(), ""};
  for (const auto& token : tokens) {
    const size_t found = token.empty() ? text.npos : text.find(token, at);
    if (found < first.first || (found == first.first && token.size() > first.second.size())) first = {found, token};
  }
  return first;
}

}  // namespace

struct Prompt::Parts {
  PromptSettings settings;
  std::string bundle;
  Tokenizer tokenizer;
  Table table;
};

Prompt::Prompt(const Bundle& bundle)
    : parts_(new Parts{bundle.manifest().prompt, bundle.path().string(), Tokenizer::from_file(bundle.file("llm/tokenizer.json")), Table(bundle)}) {
  if (!parts_->settings.has_text) {
    throw BundleError(parts_->bundle + " has no around_question in its manifest's prompt: it was exported before the C++ runtime, or its "
                      "chat template rewrites questions; export it again, or run `python -m runtime run`");
  }
}
Prompt::Prompt(Prompt&&) noexcept = default;
Prompt::~Prompt() = default;

PromptIds Prompt::ids(const std::string& question) const {
  if (!is_utf8(question)) throw PromptError("the question is not valid Unicode; expected UTF-8 text");
  if (is_blank(question)) throw PromptError("the question is empty; expected some text");
  const auto& [settings, bundle, tokenizer, table] = *parts_;
  std::vector<int64_t> ids;
  const auto append = [&](const std::vector<int64_t>& more) { ids.insert(ids.end(), more.begin(), more.end()); };
  const std::vector<std::string> specials = tokenizer.special_tokens();
  std::string text = settings.before;
  for (size_t at = 0;;) {
    const auto [start, special] = first_of(specials, question, at);
    text += question.substr(at, start - at);
    if (special.empty()) break;
    const std::vector<int64_t> literal = tokenizer.encode(special, true);
    if (literal == tokenizer.encode(special)) {
      throw PromptError("the question contains \"" + special + "\", which this model knows as a special token only; leave it out");
    }
    append(tokenizer.encode(text));
    append(literal);
    text.clear();
    at = start + special.size();
  }
  append(tokenizer.encode(text + settings.after));
  const auto video = std::find(ids.begin(), ids.end(), settings.video_token_id);
  const auto times = std::count(ids.begin(), ids.end(), settings.video_token_id);
  if (times != 1) {
    throw PromptError(concat("the chat template puts \"", settings.video_token, "\" ", times, " times into the prompt, expected once"));
  }
  return {{ids.begin(), video}, {video + 1, ids.end()}};
}

Tensor Prompt::embed(const PromptIds& ids, const TensorView& visual_tokens) const {
  const Table& table = parts_->table;
  const int64_t hidden = table.hidden();
  if (visual_tokens.shape.size() != 2 || visual_tokens.shape[1] != hidden) {
    throw EngineError("the visual tokens do not have the embeddings' width; export the bundle again");
  }
  Tensor result = Tensor::empty(table.dtype(), {1, ids.size() + visual_tokens.shape[0], hidden});
  std::byte* to = result.data.data();
  for (const int64_t id : ids.before) table.copy_row(id, to), to += table.row_bytes();
  const Tensor visual = cast(visual_tokens, table.dtype());
  std::memcpy(to, visual.data.data(), visual.data.size());
  to += visual.data.size();
  for (const int64_t id : ids.after) table.copy_row(id, to), to += table.row_bytes();
  return result;
}

Tensor Prompt::embed(int64_t id) const {
  Tensor result = Tensor::empty(parts_->table.dtype(), {1, 1, parts_->table.hidden()});
  parts_->table.copy_row(id, result.data.data());
  return result;
}

const Tokenizer& Prompt::tokenizer() const { return parts_->tokenizer; }
const std::set<int64_t>& Prompt::eos() const { return parts_->settings.eos_token_ids; }
double Prompt::repetition_penalty() const { return parts_->settings.repetition_penalty; }

std::set<int64_t> Prompt::seen(const PromptIds& ids) const {
  std::set<int64_t> seen(ids.before.begin(), ids.before.end());
  seen.insert(ids.after.begin(), ids.after.end());
  seen.insert(parts_->settings.video_token_id);
  return seen;
}

}  // namespace gridpool
