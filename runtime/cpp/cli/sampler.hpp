// The frames of a stream that `gridpool watch` looks at: one every so many seconds.
//
// A file is read as fast as the engine takes it, and no frame is lost. A camera does not wait: its frames are decoded and
// sampled by a second thread, up to T of them wait, and if the engine is slower the oldest are dropped and counted.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "gridpool/live.hpp"

namespace gridpool::cli {

inline constexpr double kRounding = 1e-9;  ///< seconds by which a frame's time may fall short of a step

struct Sampled {
  Image image;  // resized for the model, so that waiting frames are small
  double seconds = 0;
};

/// Frames `step` seconds apart, resized.
class Sampler {
 public:
  /// realtime: play a file at its speed, as a camera would. VideoError if the source can't be opened.
  Sampler(const std::string& source, double step, bool realtime, const Preprocessor& preprocessor);

  bool is_live() const { return stream_.is_live() || paced_; }
  int64_t take_lost() { return stream_.take_lost(); }

  /// The next sampled frame; none at the end.
  std::optional<Sampled> next();

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
  ~Camera();

  /// The oldest frame that waits; none at the end. Throws what the sampler threw.
  std::optional<Sampled> next();

  /// Frames that were dropped since the last call.
  int64_t take_dropped();

 private:
  void work(Sampler& sampler);
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

}  // namespace gridpool::cli
