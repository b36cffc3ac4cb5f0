// float32 and float16 (IEEE binary16), to the nearest, ties to even, as NumPy converts: with the code of ONNX Runtime's headers.
#pragma once

#include <onnxruntime_float16.h>

namespace gridpool {

struct Half : onnxruntime_float16::Float16Impl<Half> {
  explicit Half(float value) { val = ToUint16Impl(value); }
  explicit Half(uint16_t bits) { val = bits; }
  explicit operator float() const { return ToFloatImpl(); }
};

inline float float_of_half(uint16_t bits) { return static_cast<float>(Half(bits)); }
inline uint16_t half_of_float(float value) { return Half(value).val; }

}  // namespace gridpool
