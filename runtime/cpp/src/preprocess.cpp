#include "gridpool/preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "text.hpp"

namespace gridpool {
namespace {

constexpr int kPrecision = 22;  // bits of a fixed-point weight: 32, less 8 of the pixel, less 2 for overshoot
constexpr double kPi = 3.14159265358979323846;

double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * kPi) / (x * kPi); }

struct Kernel {
  double support;
  double (*weight)(double);
};

Kernel kernel_of(Resample filter) {
  switch (filter) {
    case Resample::box: return {0.5, [](double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }};
    case Resample::bilinear: return {1.0, [](double x) { return std::abs(x) < 1.0 ? 1.0 - std::abs(x) : 0.0; }};
    case Resample::hamming:
      return {1.0, [](double x) {
                x = std::abs(x);
                if (x == 0.0) return 1.0;
                if (x >= 1.0) return 0.0;
                x *= kPi;
                return std::sin(x) / x * (0.54f + 0.46f * std::cos(x));  // Pillow writes these two in single precision
              }};
    case Resample::lanczos: return {3.0, [](double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }};
    default:  // Keys' cubic with a = -0.5
      return {2.0, [](double x) {
                constexpr double a = -0.5;
                x = std::abs(x);
                if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
                if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
                return 0.0;
              }};
  }
}

/// For each output position the first input position and the weights of it and its successors.
struct Weights {
  struct Window {
    int first, count;
  };
  std::vector<Window> windows;
  std::vector<int32_t> values;  // [output, most]
  int most = 0;
};

Weights weights_of(int in, int out, Resample filter) {
  const Kernel kernel = kernel_of(filter);
  const double scale = static_cast<double>(in) / out, stretch = std::max(scale, 1.0), support = kernel.support * stretch;
  Weights result;
  result.most = static_cast<int>(std::ceil(support)) * 2 + 1;
  result.windows.resize(static_cast<size_t>(out));
  result.values.resize(static_cast<size_t>(out) * static_cast<size_t>(result.most));
  std::vector<double> exact(static_cast<size_t>(result.most));
  const double inverse = 1.0 / stretch;
  for (int position = 0; position < out; ++position) {
    const double centre = (position + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int count = std::min(static_cast<int>(centre + support + 0.5), in) - first;
    double sum = 0.0;
    for (int i = 0; i < count; ++i) {
      exact[static_cast<size_t>(i)] = kernel.weight((i + first - centre + 0.5) * inverse);
      sum += exact[static_cast<size_t>(i)];
    }
    int32_t* fixed = &result.values[static_cast<size_t>(position) * static_cast<size_t>(result.most)];
    for (int i = 0; i < count; ++i) {
      const double weight = (sum != 0.0 ? exact[static_cast<size_t>(i)] / sum : exact[static_cast<size_t>(i)]) * (1 << kPrecision);
      fixed[i] = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    result.windows[static_cast<size_t>(position)] = {first, count};
  }
  return result;
}

uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kPrecision, 0, 255)); }

Image across(const Image& image, int width) {
  return {image.height, width, std::vector<uint8_t>(static_cast<size_t>(image.height) * static_cast<size_t>(width) * 3)};
}

Image resize_rows(const Image& image, int width, Resample filter) {
  const Weights weights = weights_of(image.width, width, filter);
  Image result = across(image, width);
  uint8_t* out = result.pixels.data();
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* row = &image.pixels[static_cast<size_t>(y) * static_cast<size_t>(image.width) * 3];
    for (int x = 0; x < width; ++x) {
      const auto [first, count] = weights.windows[static_cast<size_t>(x)];
      const int32_t* weight = &weights.values[static_cast<size_t>(x) * static_cast<size_t>(weights.most)];
      const uint8_t* pixel = row + static_cast<size_t>(first) * 3;
      int32_t r = 1 << (kPrecision - 1), g = r, b = r;
      for (int i = 0; i < count; ++i, pixel += 3) {
        r += pixel[0] * weight[i];
        g += pixel[1] * weight[i];
        b += pixel[2] * weight[i];
      }
      *out++ = rounded(r), *out++ = rounded(g), *out++ = rounded(b);
    }
  }
  return result;
}

Image resize_columns(const Image& image, int height, Resample filter) {
  const Weights weights = weights_of(image.height, height, filter);
  const size_t stride = static_cast<size_t>(image.width) * 3;
  Image result{height, image.width, std::vector<uint8_t>(static_cast<size_t>(height) * stride)};
  std::vector<int32_t> sums(stride);
  for (int y = 0; y < height; ++y) {
    const auto [first, count] = weights.windows[static_cast<size_t>(y)];
    const int32_t* weight = &weights.values[static_cast<size_t>(y) * static_cast<size_t>(weights.most)];
    std::fill(sums.begin(), sums.end(), 1 << (kPrecision - 1));
    for (int i = 0; i < count; ++i) {  // row by row: reads in the order of memory
      const uint8_t* row = &image.pixels[static_cast<size_t>(first + i) * stride];
      for (size_t x = 0; x < stride; ++x) sums[x] += row[x] * weight[i];
    }
    std::transform(sums.begin(), sums.end(), &result.pixels[static_cast<size_t>(y) * stride], rounded);
  }
  return result;
}

Image resize_nearest(const Image& image, int height, int width) {
  Image result{height, width, {}};
  result.pixels.reserve(static_cast<size_t>(height) * static_cast<size_t>(width) * 3);
  const double down = static_cast<double>(image.height) / height, right = static_cast<double>(image.width) / width;
  std::vector<size_t> columns;
  double at = right * 0.5;
  for (int x = 0; x < width; ++x, at += right) columns.push_back(static_cast<size_t>(std::min(static_cast<int>(at), image.width - 1)) * 3);
  at = down * 0.5;
  for (int y = 0; y < height; ++y, at += down) {
    const size_t line = static_cast<size_t>(std::min(static_cast<int>(at), image.height - 1));
    const uint8_t* row = &image.pixels[line * static_cast<size_t>(image.width) * 3];
    for (const size_t column : columns) result.pixels.insert(result.pixels.end(), row + column, row + column + 3);
  }
  return result;
}

}  // namespace

Image resize(const Image& image, int height, int width, Resample filter) {
  if (image.height == height && image.width == width) return image;
  if (filter == Resample::nearest) return resize_nearest(image, height, width);
  if (image.height == height) return resize_rows(image, width, filter);
  if (image.width == width) return resize_columns(image, height, filter);
  // Each pass rounds to 8 bits, so their order shows. Pillow 13 takes columns first if that leaves it less to do; earlier
  // releases never do. This condition was found by trying: 2,337 random shapes, none against it.
  if (height < image.height && image.height - height > 2 * (image.width - width)) {
    return resize_rows(resize_columns(image, height, filter), width, filter);
  }
  return resize_columns(resize_rows(image, width, filter), height, filter);
}

Preprocessor::Preprocessor(const Preprocessing& settings)
    : settings_(settings),
      takes_frames_(settings.frame_height > 0),
      height_(takes_frames_ ? settings.frame_height : settings.height),
      width_(takes_frames_ ? settings.frame_width : settings.width) {
  for (size_t channel = 0; channel < 3; ++channel) {
    for (size_t value = 0; value < 256; ++value) {
      // transformers rescales in float64, rounds to float32 and normalises in float32
      const float rescaled = static_cast<float>(static_cast<double>(value) * settings.rescale_factor);
      levels_[channel][value] = (rescaled - settings.mean[channel]) / settings.std[channel];
    }
  }
}

Image Preprocessor::resize(const Image& frame) const {
  if (height_ != settings_.height || width_ != settings_.width) {  // the graph resizes
    if (frame.height == height_ && frame.width == width_) return frame;
    const std::string size = concat(frame.height, "x", frame.width);
    throw VideoError(concat("the video's frames are ", size, ", the bundle takes ", height_, "x", width_,
                            " and resizes them itself; export with --input frames:", size, ", or without --input for any size"));
  }
  return gridpool::resize(frame, settings_.height, settings_.width, static_cast<Resample>(settings_.resample));
}

Tensor Preprocessor::normalise(const std::vector<Image>& frames) const {
  const auto count = static_cast<int64_t>(frames.size());
  const size_t plane = static_cast<size_t>(height_) * static_cast<size_t>(width_);
  Tensor result = takes_frames_ ? Tensor::empty(DType::uint8, {count, height_, width_, 3})
                                : Tensor::empty(DType::float32, {count, 3, height_, width_});
  std::byte* out = result.data.data();
  for (const Image& frame : frames) {
    if (frame.height != height_ || frame.width != width_ || frame.pixels.size() != plane * 3) {
      throw std::invalid_argument("frames must be resized before they are normalised");
    }
    if (takes_frames_) {
      std::memcpy(out, frame.pixels.data(), plane * 3);
      out += plane * 3;
      continue;
    }
    for (size_t channel = 0; channel < 3; ++channel) {
      const uint8_t* pixel = frame.pixels.data() + channel;
      for (size_t i = 0; i < plane; ++i, pixel += 3, out += sizeof(float)) std::memcpy(out, &levels_[channel][*pixel], sizeof(float));
    }
  }
  return result;
}

}  // namespace gridpool
