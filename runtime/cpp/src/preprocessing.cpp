#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "manifest.hpp"
#include "refusal.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

constexpr int kMostPixels = 1 << 15;  // a side
constexpr double kMostRescaled = std::numeric_limits<float>::max() / 255;  // a rescale_factor with which no level overflows
const std::array<std::string, 6> kFilters = {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"};  // in Pillow's order

BundleError refused(const std::string& key, const Json& value, const std::string& expected) {
  return malformed("the bundle's preprocessing has " + key + " " + shown(value) + "; expected " + expected);
}

bool is_number(const Json& value) { return value.is_number() && std::isfinite(value.get<double>()); }

void read_channels(const char* key, const Json& value, float (&channels)[3]) {
  const bool is_list = value.is_array() && value.size() == 3 && std::all_of(value.begin(), value.end(), is_number);
  const bool fits = is_list || is_number(value);
  for (size_t i = 0; i < 3 && fits; ++i) channels[i] = static_cast<float>((is_list ? value[i] : value).get<double>());
  if (!fits || !std::all_of(channels, channels + 3, [](float one) { return std::isfinite(one); })) throw refused(key, value, "one number or three");
}

void read_size(const char* key, const Json& value, int& height, int& width) {
  const auto is_side = [](const Json& side) { return is_integer(side) && side > 0 && side <= kMostPixels; };
  const bool fits = value.is_array() && value.size() == 2 && std::all_of(value.begin(), value.end(), is_side);
  if (!fits) throw refused(key, value, concat("[height, width], at most ", kMostPixels, " a side"));
  height = value[0], width = value[1];
}

int filter_of(const Json& value) {
  const auto named = std::find(kFilters.begin(), kFilters.end(), value.is_string() ? value.get<std::string>() : "");
  if (named != kFilters.end()) return static_cast<int>(named - kFilters.begin());
  if (is_integer(value) && value >= 0 && value < kFilters.size()) return value;
  throw refused("resample", value, "0 to 5 or one of " + join({kFilters.begin(), kFilters.end()}));
}

}  // namespace

Preprocessing preprocessing_from(const Json& values) {
  std::vector<std::string> missing;
  for (const char* key : {"image_mean", "image_std", "resample", "rescale_factor", "size"}) {
    if (!values.contains(key)) missing.emplace_back(key);
  }
  if (!missing.empty()) throw malformed("the bundle's preprocessing lacks " + join(missing));
  Preprocessing result;
  read_size("size", values["size"], result.height, result.width);
  if (values.contains("frames")) read_size("frames", values["frames"], result.frame_height, result.frame_width);
  result.resample = filter_of(values["resample"]);
  read_channels("image_mean", values["image_mean"], result.mean);
  read_channels("image_std", values["image_std"], result.std);
  const bool has_zero = std::any_of(result.std, result.std + 3, [](float value) { return value == 0; });
  if (has_zero) throw refused("image_std", values["image_std"], "no zero");
  const Json& factor = values["rescale_factor"];
  if (!factor.is_number() || !(std::abs(factor.get<double>()) <= kMostRescaled)) throw refused("rescale_factor", factor, "a number within float32");
  result.rescale_factor = factor;
  return result;
}

}  // namespace gridpool
