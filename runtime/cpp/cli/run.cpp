// `gridpool run` and `gridpool tokens`.
#include <cmath>
#include <cstdio>

#include "commands.hpp"
#include "files.hpp"
#include "gridpool/chat.hpp"
#include "npy.hpp"
#include "text.hpp"

namespace gridpool::cli {
namespace {

double hundredths(double value) { return std::round(value * 100) / 100; }

OrderedJson json_of(const Answer& answer) {
  OrderedJson data = {{"text", answer.text},
                      {"ids", answer.ids},
                      {"patch_tokens", answer.patch_tokens},
                      {"visual_tokens", answer.visual_tokens},
                      {"prompt_tokens", answer.prompt_tokens},
                      {"frames", answer.frames},
                      {"repeated_frames", answer.repeated_frames},
                      {"seconds", cli::json_of(answer.seconds)}};
  data["compression"] = hundredths(static_cast<double>(answer.patch_tokens) / static_cast<double>(std::max<int64_t>(1, answer.visual_tokens)));
  if (answer.ids.size() > 1) {  // the first id is there when the prefill ends
    data["decode_tokens_per_second"] = hundredths(static_cast<double>(answer.ids.size() - 1) / answer.seconds.back().second);
  }
  return data;
}

void say_notes(const Clip& clip) {
  for (const std::string& note : clip.notes()) say(note);
}

}  // namespace

int run(const Arguments& arguments) {
  AskOptions options;
  options.max_new_tokens = arguments.whole("--max-new-tokens", options.max_new_tokens);
  options.sampling.temperature = arguments.real("--temperature", 0);
  options.sampling.top_p = arguments.real("--top-p", 1);
  if (arguments.has("--seed")) {
    const int64_t seed = arguments.whole("--seed", 0);
    if (seed < 0) throw PromptError(format("seed is %lld, expected 0 or more", static_cast<long long>(seed)));
    options.sampling.seed = static_cast<uint64_t>(seed);
  }
  options.sampling.chooser();  // refuses what is out of range
  if (options.max_new_tokens < 1) {
    throw PromptError(format("max_new_tokens is %lld, expected at least 1", static_cast<long long>(options.max_new_tokens)));
  }
  Bundle bundle = Bundle::open(arguments["bundle"]);
  std::optional<Prompt> prompt;
  if (bundle.has_llm()) {  // what is wrong with the request is said before gigabytes of weights are loaded
    prompt.emplace(bundle);
    VideoChat::check(bundle, *prompt, arguments["video"], arguments["question"]);
  }
  const EngineOptions engine = placed(arguments, bundle);
  VideoChat chat = VideoChat::open(std::move(bundle), backend(arguments), engine, std::move(prompt));
  const VisualTokens visual = chat.vision().encode(arguments["video"]);
  say_notes(visual.clip);
  const bool json = arguments.has("--json");
  const auto stream = [](std::string_view piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  const Answer answer = chat.ask_about(visual, arguments["question"], json ? std::function<void(std::string_view)>{} : stream, options);
  std::puts(json ? json_of(answer).dump(-1, ' ', true).c_str() : "");
  return 0;
}

int tokens(const Arguments& arguments) {
  const std::string output = arguments.text("--output", "");
  AtomicFile file(output);  // an output that can't be written is refused before the work
  const Bundle bundle = Bundle::open(arguments["bundle"]);
  const EngineOptions engine = placed(arguments, bundle);
  const VisualTokens visual = VisionEncoder::open(bundle, backend(arguments), engine).encode(arguments["video"]);
  const auto count = static_cast<int64_t>(visual.clip.indices.size());
  file.write(npz_of({{"visual_tokens", visual.tokens.view()},
                     {"frames", {DType::int64, {count}, visual.clip.indices.data()}},
                     {"timestamps", {DType::float64, {count}, visual.clip.timestamps.data()}}}));
  file.commit();
  say_notes(visual.clip);
  const std::string dtype = name_of(visual.tokens.dtype);
  print(arguments,
        {{"shape", visual.tokens.shape}, {"dtype", dtype}, {"frames", visual.clip.indices}, {"file", output}, {"seconds", cli::json_of(visual.seconds)}},
        format("%s: visual_tokens [%lld, %lld] %s", output.c_str(), static_cast<long long>(visual.tokens.shape.at(0)),
               static_cast<long long>(visual.tokens.shape.at(1)), dtype.c_str()));
  return 0;
}

}  // namespace gridpool::cli
