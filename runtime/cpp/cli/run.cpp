// `gridpool run`: the answer to one question about one video.
#include <cmath>
#include <cstdio>
#include <memory>

#include "options.hpp"
#include "output.hpp"

namespace gridpool::cli {
namespace {

struct RunOptions {
  CommonOptions common;
  std::string video, question;
  AskOptions ask;
};

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

void run(const RunOptions& options) {
  const CommonOptions& common = options.common;
  options.ask.check();
  Bundle bundle = Bundle::open(common.bundle);
  std::optional<Prompt> prompt;
  if (bundle.has_llm()) {  // a wrong question or video is refused before gigabytes of weights are loaded
    prompt.emplace(bundle);
    VideoChat::check(bundle, *prompt, options.video, options.question);
  }
  const EngineOptions engine = placed(common, bundle);
  VideoChat chat = VideoChat::open(std::move(bundle), common.backend, engine, std::move(prompt));
  const VisualTokens visual = chat.vision().encode(options.video);
  log_notes(visual.clip);
  if (common.json) return print_line(json_of(chat.ask_about(visual, options.question, {}, options.ask)));
  const auto stream = [](std::string_view piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  chat.ask_about(visual, options.question, stream, options.ask);
  std::puts("");
}

}  // namespace

void add_run(CLI::App& app) {
  CLI::App* command = app.add_subcommand("run", "answer a question about a video; the answer streams");
  const auto options = std::make_shared<RunOptions>();
  AskOptions& ask = options->ask;
  add_common(*command, options->common);
  command->add_option("video", options->video, "video file")->required();
  command->add_option("question", options->question, "what to ask")->required();
  command->add_option("--max-new-tokens", ask.max_new_tokens, "length of the answer at most")->type_name("N")->transform(integer(1));
  command->add_option("--temperature", ask.sampling.temperature, "0 is greedy")->type_name("X");
  command->add_option("--top-p", ask.sampling.top_p, "nucleus sampling")->type_name("X");
  command->add_option_function<uint64_t>("--seed", [&ask](uint64_t seed) { ask.sampling.seed = seed; },
                                         "of sampling; equal seeds give equal answers in this program, but not those of Python")
      ->type_name("N")
      ->transform(integer(0));
  command->callback([options] { run(*options); });
}

}  // namespace gridpool::cli
