// `gridpool watch`: the last T sampled frames of a stream, and a question asked about them again and again.
#include <cstdio>
#include <memory>

#include "commands.hpp"
#include "options.hpp"
#include "output.hpp"
#include "sampler.hpp"
#include "text.hpp"

namespace gridpool::cli {
namespace {

struct WatchOptions {
  CommonOptions common;
  std::string source, question;
  double every = 2, window = 8;  // seconds
  int64_t count = 0;             // answers, 0 for no end
  bool realtime = false;
  AskOptions ask;
};

void watch(const WatchOptions& options) {
  const CommonOptions& common = options.common;
  options.ask.check();
  Bundle bundle = Bundle::open(common.bundle);
  const EngineOptions engine = placed(common, bundle);
  VideoChat chat = VideoChat::open(std::move(bundle), common.backend, engine);
  chat.prompt().ids(options.question);  // refused before the camera is opened
  LiveEncoder live(chat.vision());
  if (!live.encodes_once()) log("this bundle encodes all its frames for every answer; export it with --split, and each frame is encoded once");
  const auto frames = chat.vision().frames();
  Sampler sampler(options.source, options.window / static_cast<double>(frames), options.realtime, chat.vision().preprocessor());
  std::optional<Camera> camera;
  if (sampler.is_live()) camera.emplace(sampler, static_cast<size_t>(frames));

  int64_t answers = 0;
  double due = options.every, last = 0;
  bool is_new = false;  // frames have arrived since the last answer
  const auto ask = [&] {
    const Answer answer = chat.ask_about(live.visual(), options.question, {}, options.ask);
    const int64_t dropped = camera ? camera->take_dropped() : 0, lost = sampler.take_lost();
    const std::string when = format("%.1f s: ", last);
    if (dropped) log(concat(when, "the engine is slower than the camera: ", dropped, " sampled frames dropped, the newest kept"));
    if (lost) log(concat(when, lost, " frames arrived damaged or without the frames they refer to, and are left out"));
    if (common.json) {
      print_line({{"time", last}, {"text", answer.text}, {"ids", answer.ids}, {"frames", answer.frames}, {"dropped", dropped},
                  {"seconds", json_of(answer.seconds)}});
    } else {
      std::printf("%8.1f s  %s\n", last, answer.text.c_str());
    }
    std::fflush(stdout);
    is_new = false;
    return ++answers == options.count;
  };
  while (auto frame = camera ? camera->next() : sampler.next()) {
    last = frame->seconds;
    live.push(frame->image, last);
    is_new = true;
    if (last + kRounding < due) continue;
    while (due <= last + kRounding) due += options.every;
    if (ask()) return;
  }
  if (is_new) ask();
}

}  // namespace

void add_watch(CLI::App& app) {
  CLI::App* command = app.add_subcommand("watch", "answer a question about a stream, again and again");
  const auto options = std::make_shared<WatchOptions>();
  add_common(*command, options->common);
  command->add_option("source", options->source, "video file, /dev/videoN or rtsp://…")->required();
  command->add_option("question", options->question, "what to ask")->required();
  command->add_option("--every", options->every, "time between answers, e.g. 2s or 500ms")->type_name("TIME")->transform(duration())->default_str("2s");
  command->add_option("--window", options->window, "time that the sampled frames span")->type_name("TIME")->transform(duration())->default_str("8s");
  command->add_option("--count", options->count, "stop after N answers; 0: at the end of the stream")->type_name("N")->transform(integer(0));
  command->add_flag("--realtime", options->realtime, "play a file at its speed, as a camera would")->disable_flag_override();
  command->add_option("--max-new-tokens", options->ask.max_new_tokens, "length of each answer at most")->type_name("N")->transform(integer(1));
  command->callback([options] { watch(*options); });
}

}  // namespace gridpool::cli
