// Helpers for loops over tensors on the CPU.

#pragma once

#include <ATen/OpMathType.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>

#include <cstdint>
#include <string>

namespace soft_mm {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
template <typename Body>
[[gnu::target("avx512f")]] void run_avx512(const Body& body) {
  body();
}

template <typename Body>
[[gnu::target("avx2,fma")]] void run_avx2(const Body& body) {
  body();
}
#endif

// Runs a lambda that is always inlined. It is compiled for AVX-512, for AVX2 and for neither; the
// version that runs is the one that PyTorch chose for its own kernels, from the processor or from
// the environment variable ATEN_CPU_CAPABILITY (avx512, avx2 or default).
template <typename Body>
void vectorized(const Body& body) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return run_avx512(body);
  if (capability == "AVX2") return run_avx2(body);
#endif
  body();
}

// Results that the innermost loop keeps in registers. Their dimension is padded to a multiple of
// this number, so that the compiler knows the length of the loop.
constexpr int64_t kLanes = 16;
// Terms of a sum below which starting a thread does not pay.
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
