// The exact Gaussian kernel: schemas, argument checks and CPU implementations.

#include "gaussian_kernel.h"

#include "../simd.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include <algorithm>

namespace soft_mm {
namespace {

void check_like(const char* name, const at::Tensor& x, const at::Tensor& q) {
  TORCH_CHECK(x.scalar_type() == q.scalar_type(), name, " must have the dtype of q, ",
              q.scalar_type(), ", got ", x.scalar_type());
  TORCH_CHECK(x.device() == q.device(), name, " must be on the device of q, ", q.device(),
              ", got ", x.device());
}

void check_weight(const char* name, const at::Tensor& x, const at::Tensor& q,
                  const at::Tensor& k) {
  check_like(name, x, q);
  auto shape = q.sizes().vec();
  shape.back() = k.size(-2);
  TORCH_CHECK(x.sizes() == at::IntArrayRef(shape), name,
              " must be (..., N, m), which for these q and k is ", at::IntArrayRef(shape), ", got ",
              x.sizes());
}

}  // namespace

void check_tokens(const at::Tensor& q, const at::Tensor& k) {
  const auto dtype = q.scalar_type();
  TORCH_CHECK(dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf ||
                  dtype == at::kBFloat16,
              "q must be of dtype Double, Float, Half or BFloat16, got ", dtype);
  check_like("k", k, q);
  TORCH_CHECK(q.dim() >= 2, "q must be (..., N, d), got ", q.sizes());
  const auto leading = q.dim() - 2;
  TORCH_CHECK(k.dim() == q.dim() && k.size(-1) == q.size(-1) &&
                  k.sizes().slice(0, leading) == q.sizes().slice(0, leading),
              "k must be (..., m, d) with the leading dimensions and d of q, ", q.sizes(), ", got ",
              k.sizes());
  TORCH_CHECK(q.size(-1) >= 1 && q.size(-1) <= kMaxWidth, "the head width d must be from 1 to ",
              kMaxWidth, ", got ", q.size(-1));
}

void check_weights(const at::Tensor& weight, const std::optional<at::Tensor>& factor,
                   const at::Tensor& q, const at::Tensor& k) {
  check_tokens(q, k);
  check_weight("weight", weight, q, k);
  if (factor) check_weight("factor", *factor, q, k);
}

namespace {

// Calls row(l, n) for every row n of the result, counted over all matrices; l is its matrix.
template <typename Row>
void for_each_row(const at::Tensor& q, const at::Tensor& k, const Row& row) {
  const auto rows = q.size(-2);
  const auto terms = std::max<int64_t>(1, k.size(-2) * k.size(-1));
  at::parallel_for(0, q.numel() / q.size(-1), std::max<int64_t>(1, kGrain / terms),
                   [&](int64_t begin, int64_t end) {
                     for (auto n = begin; n < end; ++n) row(n / rows, n);
                   });
}

// The m squared distances between token q (d) and the tokens k (d, width), stored channel by
// channel and padded to width.
template <typename T>
[[gnu::always_inline]] inline void distances_of_row(const T* q, const T* k, int64_t width,
                                                    int64_t d, int64_t m, T* out) {
  for (int64_t j = 0; j < m; j += kLanes) {
    T sum[kLanes] = {};
    for (int64_t c = 0; c < d; ++c) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const auto difference = k[c * width + j + lane] - q[c];
        sum[lane] += difference * difference;
      }
    }
    std::copy_n(sum, std::min(kLanes, m - j), out + j);
  }
}

// The sum (d) of the differences k - q, weighted by w (m), for tokens k (m, width) and token q
// (width), whose channels are padded to width.
template <typename T>
[[gnu::always_inline]] inline void differences_of_row(const T* w, const T* q, const T* k,
                                                      int64_t width, int64_t d, int64_t m,
                                                      T* out) {
  for (int64_t c = 0; c < d; c += kLanes) {
    T sum[kLanes] = {};
    for (int64_t j = 0; j < m; ++j) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        sum[lane] += w[j] * (k[j * width + c + lane] - q[c + lane]);
      }
    }
    std::copy_n(sum, std::min(kLanes, d - c), out + c);
  }
}

// Squared distances (..., N, m) in the accumulator's dtype.
at::Tensor distances(const at::Tensor& q, const at::Tensor& k) {
  check_tokens(q, k);
  const auto m = k.size(-2), d = k.size(-1);
  const auto rows = accumulator(q).contiguous(), columns = padded(k.mT());
  const auto width = columns.size(-1);
  auto shape = q.sizes().vec();
  shape.back() = m;
  auto out = at::empty(shape, rows.options());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "squared_distance", [&] {
    const auto* q_data = rows.const_data_ptr<scalar_t>();
    const auto* k_data = columns.const_data_ptr<scalar_t>();
    auto* out_data = out.mutable_data_ptr<scalar_t>();
    for_each_row(q, k, [&](int64_t l, int64_t n) {
      vectorized([](auto, auto... args) __attribute__((always_inline)) { distances_of_row(args...); },
                 q_data + n * d, k_data + l * d * width, width, d, m, out_data + n * m);
    });
  });
  return out;
}

at::Tensor squared_distance(const at::Tensor& q, const at::Tensor& k) {
  return distances(q, k).to(q.scalar_type());
}

at::Tensor exact_gaussian_kernel(const at::Tensor& q, const at::Tensor& k) {
  return distances(q, k).mul_(-0.5).exp_().to(q.scalar_type());
}

at::Tensor weighted_differences(const at::Tensor& weight, const std::optional<at::Tensor>& factor,
                                const at::Tensor& q, const at::Tensor& k) {
  check_weights(weight, factor, q, k);
  const auto m = k.size(-2), d = k.size(-1);
  auto weights = accumulator(weight).contiguous();
  if (factor) weights = at::mul(weights, accumulator(*factor)).contiguous();
  const auto rows = padded(q), columns = padded(k);
  const auto width = columns.size(-1);
  auto out = at::empty(q.sizes(), rows.options());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "weighted_differences", [&] {
    const auto* w_data = weights.const_data_ptr<scalar_t>();
    const auto* q_data = rows.const_data_ptr<scalar_t>();
    const auto* k_data = columns.const_data_ptr<scalar_t>();
    auto* out_data = out.mutable_data_ptr<scalar_t>();
    for_each_row(q, k, [&](int64_t l, int64_t n) {
      vectorized([](auto, auto... args) __attribute__((always_inline)) { differences_of_row(args...); },
                 w_data + n * m, q_data + n * width, k_data + l * m * width, width, d, m,
                 out_data + n * d);
    });
  });
  return out.to(q.scalar_type());
}

}  // namespace
}  // namespace soft_mm

TORCH_LIBRARY_FRAGMENT(soft_mm, m) {
  m.def("squared_distance(Tensor q, Tensor k) -> Tensor");
  m.def("exact_gaussian_kernel(Tensor q, Tensor k) -> Tensor");
  m.def("weighted_differences(Tensor weight, Tensor? factor, Tensor q, Tensor k) -> Tensor");
}

TORCH_LIBRARY_IMPL(soft_mm, CPU, m) {
  m.impl("squared_distance", soft_mm::squared_distance);
  m.impl("exact_gaussian_kernel", soft_mm::exact_gaussian_kernel);
  m.impl("weighted_differences", soft_mm::weighted_differences);
}
