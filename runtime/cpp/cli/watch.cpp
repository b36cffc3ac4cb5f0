// `gridpool watch`: the last T sampled frames of a stream, and a question asked about them again and again.
//
// A file is read as fast as the engine takes it, and no frame is lost. A camera does not wait: its frames are decoded and
// sampled by a second thread, up to T of them wait, and if the engine is slower the oldest are dropped and counted.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "gridpool/live.hpp"
#include "options.hpp"
#include "output.hpp"
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

constexpr double kRounding = 1e-9;  // seconds by which a frame's time may fall short of a step

struct Sampled {
  Image image;  // resized for the model, so that waiting frames are small
  double seconds = 0;
};

/// The frames of a stream that are looked at: `step` seconds apart, resized.
class Sampler {
 public:
  /// realtime: play a file at its speed, as a camera would. VideoError if the source can't be opened.
  Sampler(const std::string& source, double step, bool realtime, const Preprocessor& preprocessor)
      : stream_(source), preprocessor_(preprocessor), step_(step), paced_(realtime && !stream_.is_live()) {}

  bool is_live() const { return stream_.is_live() || paced_; }
  int64_t take_lost() { return stream_.take_lost(); }

  /// The next sampled frame; none at the end.
  std::optional<Sampled> next() {
    double seconds = 0;
    while (stream_.next(seconds)) {
      if (paced_) std::this_thread::sleep_until(start_ + std::chrono::duration<double>(seconds));
      if (seconds + kRounding < wanted_) continue;
      while (wanted_ <= seconds + kRounding) wanted_ = static_cast<double>(++taken_) * step_;
      return Sampled{preprocessor_.resize(stream_.image()), seconds};
    }
    return std::nullopt;
  }

 private:
  VideoStream stream_;
  const Preprocessor& preprocessor_;
  double step_, wanted_ = 0;
  int64_t taken_ = 0;
  bool paced_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// A sampler that runs ahead in a second thread; the newest `capacity` frames wait.
class Camera {
 public:
  Camera(Sampler& sampler, size_t capacity) : capacity_(capacity), thread_([this, &sampler] { work(sampler); }) {}
  Camera(const Camera&) = delete;
  Camera& operator=(const Camera&) = delete;
  ~Camera() {
    stopped_ = true;
    thread_.join();
  }

  /// The oldest frame that waits; none at the end. Throws what the sampler threw.
  std::optional<Sampled> next() {
    std::unique_lock<std::mutex> lock(mutex_);
    came_.wait(lock, [this] { return !waiting_.empty() || ended_; });
    if (waiting_.empty()) {
      if (failure_) std::rethrow_exception(failure_);
      return std::nullopt;
    }
    Sampled frame = std::move(waiting_.front());
    waiting_.pop_front();
    return frame;
  }

  /// Frames that were dropped since the last call.
  int64_t take_dropped() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(dropped_, 0);
  }

 private:
  void work(Sampler& sampler) {
    std::exception_ptr failure;
    try {
      while (!stopped_) {
        auto frame = sampler.next();
        if (!frame) break;
        const std::lock_guard<std::mutex> lock(mutex_);
        waiting_.push_back(std::move(*frame));
        if (waiting_.size() > capacity_) waiting_.pop_front(), ++dropped_;
        came_.notify_one();
      }
    } catch (...) {
      failure = std::current_exception();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    failure_ = failure;
    ended_ = true;
    came_.notify_one();
  }

  size_t capacity_;
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<Sampled> waiting_;
  int64_t dropped_ = 0;
  bool ended_ = false;
  std::exception_ptr failure_;
  std::atomic<bool> stopped_{false};
  std::thread thread_;  // last: it uses all of the above
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
                  {"seconds", cli::json_of(answer.seconds)}});
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
