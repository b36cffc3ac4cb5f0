// `gridpool watch`: the last T sampled frames of a stream, and a question asked about them again and again.
//
// A file is read as fast as the engine takes it, and no frame is lost. A camera does not wait: its frames are decoded and
// sampled by a second thread, up to T of them wait, and where the engine is slower the oldest are dropped and that is said.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

#include "commands.hpp"
#include "gridpool/chat.hpp"
#include "gridpool/live.hpp"
#include "text.hpp"

namespace gridpool::cli {
namespace {

using Clock = std::chrono::steady_clock;

double duration(const Arguments& arguments, const std::string& option, double otherwise) {
  const std::string text = arguments.text(option, "");
  if (!arguments.has(option)) return otherwise;
  char* end = nullptr;
  double seconds = std::strtod(text.c_str(), &end);
  const std::string unit = end;
  if (unit == "ms") seconds /= 1000;
  if (end == text.c_str() || (unit != "" && unit != "s" && unit != "ms") || !(seconds >= 0.001 && seconds <= 86400)) {
    throw UsageError("argument " + option + ": " + python_str(text) + " is no time from 1ms to a day; expected e.g. 2s or 500ms; `gridpool watch --help` shows what there is");
  }
  return seconds;
}

struct Sampled {
  Image image;  // resized for the model, so that waiting frames are small
  double seconds = 0;
};

/// Every step-th part of a second's frame of a source, resized.
class Sampler {
 public:
  Sampler(const std::string& source, double step, bool realtime, const Preprocessor& preprocessor)
      : stream_(source), preprocessor_(preprocessor), step_(step), paced_(realtime && !stream_.is_live()) {}

  bool is_live() const { return stream_.is_live() || paced_; }

  int64_t take_lost() { return stream_.take_lost(); }

  /// The next sampled frame; none at the end.
  std::optional<Sampled> next() {
    double seconds = 0;
    while (stream_.next(seconds)) {
      if (paced_) std::this_thread::sleep_until(start_ + std::chrono::duration<double>(seconds));
      if (seconds + 1e-9 < wanted_) continue;
      while (wanted_ <= seconds + 1e-9) wanted_ = static_cast<double>(++taken_) * step_;
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
  Clock::time_point start_ = Clock::now();
};

/// A sampler that runs ahead in a thread of its own; the newest `capacity` frames wait.
class Camera {
 public:
  Camera(Sampler& sampler, size_t capacity) : capacity_(capacity), thread_([this, &sampler] { work(sampler); }) {}
  Camera(const Camera&) = delete;
  Camera& operator=(const Camera&) = delete;
  ~Camera() {
    stopped_ = true;
    thread_.join();
  }

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

  /// Frames that were dropped since the last time that this was asked.
  int64_t dropped() {
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

void report(const Arguments& arguments, double seconds, const Answer& answer, int64_t dropped, int64_t lost) {
  if (dropped) {
    say(format("%.1f s: the engine is slower than the camera: %lld sampled frames dropped, the newest kept", seconds,
               static_cast<long long>(dropped)));
  }
  if (lost) {
    say(format("%.1f s: %lld frames came damaged or without what they refer to, and are left out", seconds, static_cast<long long>(lost)));
  }
  if (arguments.has("--json")) {
    const OrderedJson line = {{"time", seconds},      {"text", answer.text},     {"ids", answer.ids},
                              {"frames", answer.frames}, {"dropped", dropped}, {"seconds", json_of(answer.seconds)}};
    std::puts(line.dump(-1, ' ', true).c_str());
  } else {
    std::printf("%8.1f s  %s\n", seconds, answer.text.c_str());
  }
  std::fflush(stdout);
}

}  // namespace

int watch(const Arguments& arguments) {
  const double every = duration(arguments, "--every", 2), window = duration(arguments, "--window", 8);
  const int64_t count = arguments.whole("--count", 0);
  if (count < 0) throw UsageError(format("argument --count: %lld answers; expected 0 (no end) or more", static_cast<long long>(count)));
  AskOptions options;
  options.max_new_tokens = arguments.whole("--max-new-tokens", options.max_new_tokens);
  Bundle bundle = Bundle::open(arguments["bundle"]);
  const EngineOptions engine = placed(arguments, bundle);
  VideoChat chat = VideoChat::open(std::move(bundle), backend(arguments), engine);
  chat.prompt().ids(arguments["question"]);  // refused before the camera is opened
  LiveEncoder live(chat.vision());
  if (!live.encodes_once()) say("this bundle encodes all its frames for every answer; export it with --split, and each frame is encoded once");
  const auto frames = chat.vision().frames();
  Sampler sampler(arguments["source"], window / static_cast<double>(frames), arguments.has("--realtime"), chat.vision().preprocessor());
  std::optional<Camera> camera;
  if (sampler.is_live()) camera.emplace(sampler, static_cast<size_t>(frames));

  int64_t answers = 0;
  double due = every, last = 0;
  bool is_new = false;  // frames have come since the last answer
  const auto ask = [&](double seconds) {
    const Answer answer = chat.ask_about(live.visual(), arguments["question"], {}, options);
    report(arguments, seconds, answer, camera ? camera->dropped() : 0, sampler.take_lost());
    is_new = false;
    return ++answers == count;
  };
  while (auto frame = camera ? camera->next() : sampler.next()) {
    last = frame->seconds;
    live.push(frame->image, last);
    is_new = true;
    if (last + 1e-9 < due) continue;
    while (due <= last + 1e-9) due += every;
    if (ask(last)) return 0;
  }
  if (is_new) ask(last);
  return 0;
}

}  // namespace gridpool::cli
