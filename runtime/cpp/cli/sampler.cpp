#include "sampler.hpp"

namespace gridpool::cli {

Sampler::Sampler(const std::string& source, double step, bool realtime, const Preprocessor& preprocessor)
    : stream_(source), preprocessor_(preprocessor), step_(step), paced_(realtime && !stream_.is_live()) {}

std::optional<Sampled> Sampler::next() {
  double seconds = 0;
  while (stream_.next(seconds)) {
    if (paced_) std::this_thread::sleep_until(start_ + std::chrono::duration<double>(seconds));
    if (seconds + kRounding < wanted_) continue;
    while (wanted_ <= seconds + kRounding) wanted_ = static_cast<double>(++taken_) * step_;
    return Sampled{preprocessor_.resize(stream_.image()), seconds};
  }
  return std::nullopt;
}

Camera::~Camera() {
  stopped_ = true;
  thread_.join();
}

std::optional<Sampled> Camera::next() {
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

int64_t Camera::take_dropped() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(dropped_, 0);
}

void Camera::work(Sampler& sampler) {
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

}  // namespace gridpool::cli
