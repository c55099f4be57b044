// What the loops over tensors on the CPU share.

#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>

#include <cstdint>

// Compiles a function for wider vectors too; the one that the processor has is taken at run time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SOFT_MM_VECTORIZED \
  __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define SOFT_MM_VECTORIZED
#endif

namespace soft_mm {

// Results that the innermost loop keeps in registers. What they run along is padded to a multiple
// of them, so that the compiler knows the loop's length.
constexpr int64_t kLanes = 16;
// Terms of a sum below which a thread is not worth its start.
constexpr int64_t kGrain = 32768;

inline at::Tensor accumulator(const at::Tensor& x) {
  return x.to(at::toOpMathType(x.scalar_type()));
}

// The accumulator (..., a, b), contiguous, b padded with zeros to a multiple of kLanes.
inline at::Tensor padded(const at::Tensor& x) {
  const auto missing = (kLanes - x.size(-1) % kLanes) % kLanes;
  const auto wide = missing ? at::constant_pad_nd(accumulator(x), {0, missing}) : accumulator(x);
  return wide.contiguous();
}

}  // namespace soft_mm
