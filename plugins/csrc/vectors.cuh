// 16-byte vectors of float32, float16 and bfloat16: load, store, convert. By the GPU's instructions, or by bits on a host.
//
// No CUDA header is needed, so that NVRTC compiles this without a toolkit.
#pragma once

#if defined(__CUDACC__)
#define GRIDPOOL_FN __device__ __forceinline__
#define GRIDPOOL_BOTH __host__ __device__ __forceinline__
#define GRIDPOOL_UNROLL _Pragma("unroll")
#else
#define GRIDPOOL_FN inline
#define GRIDPOOL_BOTH inline
#define GRIDPOOL_UNROLL
#endif

namespace gridpool {

struct alignas(16) Vec {
  unsigned word[4];
};

// max that keeps NaN: a NaN token must not look like a pooled one
GRIDPOOL_FN float largest(float a, float b) { return a != a || a > b ? a : b; }

GRIDPOOL_BOTH int largest_of(int a, int b) { return a > b ? a : b; }
GRIDPOOL_BOTH int smallest(int a, int b) { return a < b ? a : b; }
GRIDPOOL_BOTH int ceil_div(int a, int b) { return (a + b - 1) / b; }

GRIDPOOL_FN bool infinite(float value) { return value > 3.402823e38f; }  // the norm's order is never negative

#if defined(__CUDA_ARCH__)
using SharedAddress = unsigned;

GRIDPOOL_FN float float_from_bits(unsigned bits) { return __uint_as_float(bits); }
GRIDPOOL_FN unsigned bits_from_float(float value) { return __float_as_uint(value); }

GRIDPOOL_FN Vec load(const Vec* address) {
  const uint4 words = __ldg(reinterpret_cast<const uint4*>(address));
  return Vec{{words.x, words.y, words.z, words.w}};
}

// The last read of a token: it is not kept in L1, and in L2 it is evicted before tokens that will be read again.
GRIDPOOL_FN Vec load_last(const Vec* address) {
  Vec vec;
  unsigned long long policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(vec.word[0]), "=r"(vec.word[1]), "=r"(vec.word[2]), "=r"(vec.word[3])
               : "l"(address), "l"(policy));
  return vec;
}

// What an earlier launch wrote, perhaps while this one was already on the GPU: from L2, where all multiprocessors see the same.
GRIDPOOL_FN Vec load_written(const Vec* address) {
  Vec vec;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"  // "memory": it must stay behind wait_for_launch_before
               : "=r"(vec.word[0]), "=r"(vec.word[1]), "=r"(vec.word[2]), "=r"(vec.word[3])
               : "l"(address)
               : "memory");
  return vec;
}

// Nothing reads the output in this kernel: it must not push the clip out of L2.
GRIDPOOL_FN void store_streaming(Vec* address, Vec value) {
  __stcs(reinterpret_cast<uint4*>(address), make_uint4(value.word[0], value.word[1], value.word[2], value.word[3]));
}

GRIDPOOL_FN SharedAddress shared_address(Vec* shared) {
  unsigned address;
  asm("{ .reg .u64 wide; cvta.to.shared.u64 wide, %1; cvt.u32.u64 %0, wide; }" : "=r"(address) : "l"(shared));
  return address;
}

// The shared memory that the launch asked for beyond what the kernel declares.
GRIDPOOL_FN Vec* dynamic_shared() {
  extern __shared__ Vec dynamic_shared_memory[];
  return dynamic_shared_memory;
}

// Starts to copy 16 bytes to `position` vectors beyond `shared` where `wanted`, bypassing L1.
GRIDPOOL_FN void copy_async(SharedAddress shared, int position, const Vec* global, bool wanted) {
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(shared + 16 * position),
               "l"(global), "r"(static_cast<int>(wanted))
               : "memory");
}

// Ends a group of this thread's copies, which may be empty.
GRIDPOOL_FN void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most LATER of this thread's groups are in flight.
template <int LATER>
GRIDPOOL_FN void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

// Programmatic dependent launch, from compute capability 9.0 on: blocks of the next launch may start as blocks of this one end, and
// wait for all of this one before they read what it wrote. Without the launch attribute, or on older GPUs, launches never overlap.
GRIDPOOL_FN void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

GRIDPOOL_FN void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

GRIDPOOL_FN unsigned bfloat16_pair(float low, float high) {
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

GRIDPOOL_FN float float_from_half(unsigned half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<unsigned short>(half)));
  return value;
}

GRIDPOOL_FN unsigned half_from_float(float value) {
  unsigned short half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
}

#else  // the same on a host
using SharedAddress = Vec*;

GRIDPOOL_FN float float_from_bits(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

GRIDPOOL_FN unsigned bits_from_float(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

GRIDPOOL_FN Vec load(const Vec* address) { return *address; }
GRIDPOOL_FN Vec load_last(const Vec* address) { return *address; }
GRIDPOOL_FN Vec load_written(const Vec* address) { return *address; }
GRIDPOOL_FN void store_streaming(Vec* address, Vec value) { *address = value; }
GRIDPOOL_FN SharedAddress shared_address(Vec* shared) { return shared; }
#if defined(GRIDPOOL_DYNAMIC_SHARED)
GRIDPOOL_FN Vec* dynamic_shared() { return static_cast<Vec*>(GRIDPOOL_DYNAMIC_SHARED); }
#else
GRIDPOOL_FN Vec* dynamic_shared() { return nullptr; }  // for nvcc's pass for the host
#endif
GRIDPOOL_FN void copy_async(SharedAddress shared, int position, const Vec* global, bool wanted) {
  if (wanted) shared[position] = *global;
}
GRIDPOOL_FN void commit_copies() {}
template <int LATER>
GRIDPOOL_FN void wait_for_copies() {}
GRIDPOOL_FN void let_next_launch_begin() {}
GRIDPOOL_FN void wait_for_launch_before() {}

GRIDPOOL_FN unsigned bfloat16_from_float(float value) {  // nearest, ties to even
  const unsigned bits = bits_from_float(value);
  return value != value ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

GRIDPOOL_FN unsigned bfloat16_pair(float low, float high) { return bfloat16_from_float(low) | bfloat16_from_float(high) << 16; }

GRIDPOOL_FN float float_from_half(unsigned half) {
  const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
  if (exponent == 0) {  // subnormal: fraction * 2^-24
    const float value = static_cast<float>(fraction) * float_from_bits(0x33800000u);
    return float_from_bits(bits_from_float(value) | sign);
  }
  return float_from_bits(sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13);
}

GRIDPOOL_FN unsigned half_from_float(float value) {  // nearest, ties to even
  const unsigned bits = bits_from_float(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;
  if (magnitude >= 0x47800000u) return sign | 0x7c00u;  // from 65536 on
  if (magnitude < 0x38800000u)                          // below 2^-14: adding 0.5 leaves fraction * 2^-24, rounded by the FPU
    return sign | (bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u);
  const unsigned rebased = magnitude - (112u << 23);
  return sign | (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13;  // 65520 and up carries into infinity
}
#endif

struct Float {
  static constexpr int kLanes = 4;
  static GRIDPOOL_FN void unpack(Vec vec, float (&value)[4]) {
    GRIDPOOL_UNROLL
    for (int i = 0; i < 4; ++i) value[i] = float_from_bits(vec.word[i]);
  }
  static GRIDPOOL_FN Vec pack(const float (&value)[4]) {
    return Vec{{bits_from_float(value[0]), bits_from_float(value[1]), bits_from_float(value[2]), bits_from_float(value[3])}};
  }
};

// Two values a word, by the functions of the dtype T.
template <class T>
struct Pairs {
  static constexpr int kLanes = 8;
  static GRIDPOOL_FN void unpack(Vec vec, float (&value)[8]) {
    GRIDPOOL_UNROLL
    for (int i = 0; i < 4; ++i) value[2 * i] = T::low(vec.word[i]), value[2 * i + 1] = T::high(vec.word[i]);
  }
  static GRIDPOOL_FN Vec pack(const float (&value)[8]) {
    Vec vec;
    GRIDPOOL_UNROLL
    for (int i = 0; i < 4; ++i) vec.word[i] = T::pair(value[2 * i], value[2 * i + 1]);
    return vec;
  }
};

struct BFloat16 : Pairs<BFloat16> {
  static GRIDPOOL_FN float low(unsigned word) { return float_from_bits(word << 16); }
  static GRIDPOOL_FN float high(unsigned word) { return float_from_bits(word & 0xffff0000u); }
  static GRIDPOOL_FN unsigned pair(float low, float high) { return bfloat16_pair(low, high); }
};

struct Half : Pairs<Half> {
  static GRIDPOOL_FN float low(unsigned word) { return float_from_half(word & 0xffffu); }
  static GRIDPOOL_FN float high(unsigned word) { return float_from_half(word >> 16); }
  static GRIDPOOL_FN unsigned pair(float low, float high) { return half_from_float(low) | half_from_float(high) << 16; }
};

// sum += weight * vec
template <class T>
GRIDPOOL_FN void add(float (&sum)[T::kLanes], Vec vec, float weight) {
  float value[T::kLanes];
  T::unpack(vec, value);
  GRIDPOOL_UNROLL
  for (int lane = 0; lane < T::kLanes; ++lane) sum[lane] += weight * value[lane];
}

}  // namespace gridpool
