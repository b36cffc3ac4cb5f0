#include "gridpool/live.hpp"

#include <algorithm>
#include <cstring>

#include "refusal.hpp"
#include "split.hpp"
#include "stopwatch.hpp"

namespace gridpool {

/// The last T rows; each is written twice, T rows apart, so that they are always contiguous and in order.
struct LiveEncoder::Ring {
  SplitVision* split = nullptr;
  DType dtype = DType::float32;
  std::vector<int64_t> row_shape;  // [1, …]
  size_t row_bytes = 0;
  int64_t frames = 0, pushed = 0;
  std::vector<std::byte> rows;
  std::vector<double> times;
  int height = 0, width = 0;
  double encoding = 0;  // seconds of the last push

  int64_t held() const { return std::min(pushed, frames); }
  size_t start() const { return static_cast<size_t>(pushed >= frames ? pushed % frames : 0); }

  void push(const std::byte* row, double seconds) {
    for (const int64_t slot : {pushed % frames, pushed % frames + frames}) {
      std::memcpy(&rows[static_cast<size_t>(slot) * row_bytes], row, row_bytes);
      times[static_cast<size_t>(slot)] = seconds;
    }
    ++pushed;
  }
};

LiveEncoder::LiveEncoder(VisionEncoder& vision) : vision_(vision), ring_(std::make_unique<Ring>()) {
  ring_->split = dynamic_cast<SplitVision*>(&vision.engine());
  const TensorSpec& kept = ring_->split ? ring_->split->features() : vision.engine().inputs()[0];
  ring_->dtype = kept.dtype;
  ring_->frames = vision.frames();
  ring_->row_shape = {1};
  for (size_t axis = 1; axis < kept.shape.size(); ++axis) ring_->row_shape.push_back(kept.shape[axis].size);
  ring_->row_bytes = static_cast<size_t>(TensorView{kept.dtype, ring_->row_shape, nullptr}.count()) * size_of(kept.dtype);
  ring_->rows.resize(2 * static_cast<size_t>(ring_->frames) * ring_->row_bytes);
  ring_->times.resize(2 * static_cast<size_t>(ring_->frames));
}

LiveEncoder::~LiveEncoder() = default;

int64_t LiveEncoder::held() const { return ring_->held(); }
bool LiveEncoder::encodes_once() const { return ring_->split != nullptr; }

void LiveEncoder::push(const Image& frame, double seconds) {
  const Stopwatch stopwatch;
  const Preprocessor& preprocessor = vision_.preprocessor();
  Tensor row = preprocessor.normalise({preprocessor.resize(frame)});
  if (row.dtype == DType::float32 && vision_.engine().inputs()[0].dtype == DType::float16) row = cast(row.view(), DType::float16);
  if (ring_->split) row = ring_->split->encode(row.view());
  if (row.dtype != ring_->dtype || row.shape != ring_->row_shape) {
    throw malformed("the vision graph takes other frames than the manifest lists");
  }
  ring_->push(row.data.data(), seconds);
  ring_->height = frame.height, ring_->width = frame.width;
  ring_->encoding = stopwatch.seconds();
}

VisualTokens LiveEncoder::visual() {
  const Stopwatch stopwatch;
  const int64_t held = ring_->held(), frames = ring_->frames;
  if (held == 0) throw VideoError("no frame has been pushed yet; push at least one before asking for tokens");
  const std::byte* rows = &ring_->rows[ring_->start() * ring_->row_bytes];
  std::vector<std::byte> repeated;
  Clip clip;
  for (int64_t i = 0; i < frames; ++i) {
    const auto at = static_cast<size_t>(i * held / frames);
    clip.indices.push_back(ring_->pushed - held + static_cast<int64_t>(at));
    clip.timestamps.push_back(ring_->times[ring_->start() + at]);
    if (held < frames) repeated.insert(repeated.end(), rows + at * ring_->row_bytes, rows + (at + 1) * ring_->row_bytes);
  }
  if (held < frames) rows = repeated.data();
  clip.duration = clip.timestamps.back() - clip.timestamps.front();
  clip.total = ring_->pushed;
  clip.height = ring_->height, clip.width = ring_->width;
  std::vector<int64_t> shape = ring_->row_shape;
  shape[0] = frames;
  Tensor tokens = ring_->split ? vision_.checked(ring_->split->compress(rows)) : vision_.tokens({ring_->dtype, shape, rows});
  const double compressing = stopwatch.seconds();
  return {std::move(tokens), std::move(clip), {{"encode", ring_->encoding}, {"compress", compressing}}};
}

}  // namespace gridpool
