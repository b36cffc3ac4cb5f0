#include <algorithm>
#include <stdexcept>

#include "gridpool/engine.hpp"
#include "half.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

struct {
  const char* name;
  size_t bytes;
} constexpr kDTypes[] = {{"float32", 4}, {"float16", 2}, {"float64", 8}, {"int64", 8}, {"int32", 4}, {"int8", 1}, {"uint8", 1}, {"bool", 1}};

int64_t product(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

std::string shown(const std::vector<int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const int64_t size : shape) sizes.push_back(std::to_string(size));
  return "[" + join(sizes) + "]";
}

std::string shown(const std::vector<Dimension>& shape) {
  std::vector<std::string> sizes;
  for (const auto& dimension : shape) sizes.push_back(dimension.size < 0 ? dimension.name : std::to_string(dimension.size));
  return "[" + join(sizes) + "]";
}

}  // namespace

State::~State() = default;
Engine::~Engine() = default;

std::vector<const TensorSpec*> Engine::returned(const State* state) const {
  std::vector<const TensorSpec*> specs;
  for (const auto& spec : outputs_) {
    const auto is_here = [&](const auto& pair) { return pair.second == spec.name; };
    if (!state || std::none_of(state->pairs.begin(), state->pairs.end(), is_here)) specs.push_back(&spec);
  }
  return specs;
}

const char* name_of(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }
size_t size_of(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].bytes; }

int64_t TensorView::count() const { return product(shape); }
int64_t Tensor::count() const { return product(shape); }
TensorView Tensor::view() const { return {dtype, shape, data.data()}; }

Tensor Tensor::empty(DType dtype, std::vector<int64_t> shape) {
  const auto bytes = static_cast<size_t>(product(shape)) * size_of(dtype);
  return {dtype, std::move(shape), std::vector<std::byte>(bytes)};
}

std::vector<float> Tensor::floats() const {
  const Tensor values = cast(view(), DType::float32);
  std::vector<float> result(static_cast<size_t>(count()));
  std::memcpy(result.data(), values.data.data(), values.data.size());
  return result;
}

Tensor cast(const TensorView& values, DType dtype) {
  const auto is_float = [](DType type) { return type == DType::float32 || type == DType::float16; };
  if (!is_float(dtype) || !is_float(values.dtype)) throw std::invalid_argument("only float32 and float16 are cast");
  Tensor result = Tensor::empty(dtype, values.shape);
  const auto count = static_cast<size_t>(result.count());
  if (dtype == values.dtype) {
    std::memcpy(result.data.data(), values.data, result.data.size());
  } else if (dtype == DType::float16) {
    for (size_t i = 0; i < count; ++i) {
      const uint16_t half = half_of_float(static_cast<const float*>(values.data)[i]);
      std::memcpy(&result.data[i * 2], &half, 2);
    }
  } else {
    for (size_t i = 0; i < count; ++i) {
      uint16_t half;
      std::memcpy(&half, static_cast<const std::byte*>(values.data) + i * 2, 2);
      const float value = float_of_half(half);
      std::memcpy(&result.data[i * 4], &value, 4);
    }
  }
  return result;
}

void check_feeds(const std::vector<TensorSpec>& specs, const Feeds& feeds, const State* state) {
  std::map<std::string, const TensorSpec*> expected;
  for (const auto& spec : specs) {
    if (!state || !state->pairs.count(spec.name)) expected[spec.name] = &spec;
  }
  std::map<std::string, const TensorView*> fed;
  for (const auto& [name, view] : feeds) fed[name] = &view;
  std::vector<std::string> got, want;
  for (const auto& [name, view] : fed) got.push_back(name);
  for (const auto& [name, spec] : expected) want.push_back(name);
  if (got != want || fed.size() != feeds.size()) throw EngineError("inputs are " + join(got) + "; the graph takes " + join(want));
  std::map<std::string, int64_t> sizes;
  for (const auto& [name, spec] : expected) {
    const TensorView& array = *fed.at(name);
    if (array.dtype != spec->dtype) throw EngineError(name + " is " + name_of(array.dtype) + ", the graph takes " + name_of(spec->dtype));
    bool fits = array.shape.size() == spec->shape.size();
    for (size_t axis = 0; fits && axis < array.shape.size(); ++axis) {
      const Dimension& dimension = spec->shape[axis];
      const int64_t size = array.shape[axis];
      fits = size == (dimension.size >= 0 ? dimension.size : sizes.emplace(dimension.name, size).first->second);
    }
    if (!fits) throw EngineError(name + " has shape " + shown(array.shape) + ", the graph takes " + shown(spec->shape));
  }
}

}  // namespace gridpool
