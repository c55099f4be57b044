// Helpers for loops over tensors on the CPU.

#pragma once

#include <ATen/OpMathType.h>
#include <ATen/Version.h>
#include <ATen/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>

#include <cstdint>

namespace soft_mm {

enum class Vectors { kNone, kAvx2, kAvx512 };

// Those that PyTorch chose for its own kernels, from the processor or from the environment variable
// ATEN_CPU_CAPABILITY (avx512, avx2 or default).
inline Vectors vectors() {
  static const Vectors chosen = [] {
    const auto capability = at::get_cpu_capability();
    return capability == "AVX512" ? Vectors::kAvx512
           : capability == "AVX2" ? Vectors::kAvx2
                                  : Vectors::kNone;
  }();
  return chosen;
}

// The size of the vector registers of a version, as a type.
template <int64_t size>
struct Registers {
  static constexpr int64_t bytes = size;
};

// As many consecutive numbers as fit in one register.
template <typename T, typename Registers>
struct Vector {
  typedef T Type __attribute__((vector_size(Registers::bytes), aligned(alignof(T)), may_alias));
  static constexpr int64_t size = Registers::bytes / sizeof(T);
};

template <typename Vector, typename T>
[[gnu::always_inline]] inline Vector& as(T* data) {
  return *reinterpret_cast<Vector*>(data);
}

template <typename Vector, typename T>
[[gnu::always_inline]] inline const Vector& as(const T* data) {
  return *reinterpret_cast<const Vector*>(data);
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
template <typename Loop, typename... Args>
[[gnu::target("avx512f")]] void run_avx512(Loop loop, Args... args) {
  loop(Registers<64>{}, args...);
}

template <typename Loop, typename... Args>
[[gnu::target("avx2,fma")]] void run_avx2(Loop loop, Args... args) {
  loop(Registers<32>{}, args...);
}
#endif

// Runs a loop, a lambda that is always inlined, in the version for these vectors: it is compiled for
// AVX-512, for AVX2 and for neither, and gets the size of the registers as its first argument. The
// others are passed by value, because the compiler would assume that the loop's results overwrite
// whatever it reads by reference.
template <typename Loop, typename... Args>
void vectorized(Loop loop, Args... args) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (vectors() == Vectors::kAvx512) return run_avx512(loop, args...);
  if (vectors() == Vectors::kAvx2) return run_avx2(loop, args...);
#endif
  loop(Registers<16>{}, args...);
}

// The innermost dimension of the loops is padded to a multiple of this number, which holds whole
// registers of every version.
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
