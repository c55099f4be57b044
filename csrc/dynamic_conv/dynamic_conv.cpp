// InLine's dynamic convolution of channel-last tokens: schemas, argument checks and CPU
// implementations.

#include "../simd.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

namespace soft_mm {
namespace {

constexpr int kTaps = 9;
// Approximate number of partial sums per batch. It does not depend on the number of threads, so the
// same input gives the same bits.
constexpr int64_t kParts = 64;

// A map (height, width, channels) whose neighbouring tokens are `stride` elements apart.
struct Shape {
  int64_t height, width, channels, stride;
};

// The three rows under a filter centred on row y, in one register of channels; outside the map they
// are 0.
template <typename T>
struct Rows {
  Rows(const T* map, int64_t y, const Shape& shape) {
    for (int s = 0; s < 3; ++s) {
      const auto row = y + s - 1;
      const bool inside = row >= 0 && row < shape.height;
      first[s] = inside ? map + row * shape.width * shape.stride : zeros;
      stride[s] = inside ? shape.stride : 0;
    }
  }

  static constexpr T zeros[kLanes] = {};
  const T* first[3];
  int64_t stride[3];
};

// Calls visit(tap, token) for the 3x3 taps in the filter's columns [first, last), centred on x.
template <typename Type, typename T, typename Visit>
[[gnu::always_inline]] inline void for_each_tap(const Rows<T>& rows, int64_t x, int first, int last,
                                                const Visit& visit) {
#pragma GCC unroll 3
  for (int s = 0; s < 3; ++s) {
#pragma GCC unroll 3
    for (int t = first; t < last; ++t) {
      visit(3 * s + t, as<Type>(rows.first[s] + (x + t - 1) * rows.stride[s]));
    }
  }
}

// Calls visit(x, first, last) for every x of a row, where [first, last) are the filter's columns
// inside the map. Away from the borders they are constants, so the compiler unrolls all nine taps.
template <typename Visit>
[[gnu::always_inline]] inline void for_each_token(int64_t width, const Visit& visit) {
  if (width == 0) return;
  visit(0, 1, width > 1 ? 3 : 2);
  for (int64_t x = 1; x < width - 1; ++x) visit(x, 0, 3);
  if (width > 1) visit(width - 1, 0, 2);
}

// Computes row y (width, channels) of the result from filters (9, channels) and bias (channels).
template <typename Registers, typename T>
[[gnu::always_inline]] inline void convolve_row(Registers, const T* map, const T* filters, const T* bias,
                                                T* out, int64_t y, const Shape& shape) {
  using Type = typename Vector<T, Registers>::Type;
  for (int64_t block = 0; block < shape.channels; block += Vector<T, Registers>::size) {
    const Rows<T> rows(map + block, y, shape);
    Type weights[kTaps];
    for (int tap = 0; tap < kTaps; ++tap) {
      weights[tap] = as<Type>(filters + tap * shape.channels + block);
    }
    for_each_token(shape.width, [&](int64_t x, int first, int last) __attribute__((always_inline)) {
      Type sum = as<Type>(bias + block);
      for_each_tap<Type>(rows, x, first, last, [&](int tap, const Type& token) __attribute__((always_inline)) {
        sum += weights[tap] * token;
      });
      as<Type>(out + x * shape.channels + block) = sum;
    });
  }
}

// Adds the contribution of row y (width, channels) of grad to the filters' gradient (9, channels).
template <typename Registers, typename T>
[[gnu::always_inline]] inline void correlate_row(Registers, const T* grad, const T* map, T* out, int64_t y,
                                                 const Shape& shape) {
  using Type = typename Vector<T, Registers>::Type;
  for (int64_t block = 0; block < shape.channels; block += Vector<T, Registers>::size) {
    const Rows<T> rows(map + block, y, shape);
    Type sums[kTaps] = {};
    for_each_token(shape.width, [&](int64_t x, int first, int last) __attribute__((always_inline)) {
      const Type factor = as<Type>(grad + x * shape.channels + block);
      for_each_tap<Type>(rows, x, first, last, [&](int tap, const Type& token) __attribute__((always_inline)) {
        sums[tap] += factor * token;
      });
    });
    for (int tap = 0; tap < kTaps; ++tap) as<Type>(out + tap * shape.channels + block) += sums[tap];
  }
}

// Checks that v is (B, height·width, C) with a floating dtype on the CPU.
void check_map(const at::Tensor& v, int64_t height, int64_t width) {
  TORCH_CHECK(v.is_floating_point() && v.device().is_cpu(), "v must be of a floating dtype and on ",
              "the CPU, got ", v.scalar_type(), " on ", v.device());
  TORCH_CHECK(v.dim() == 3 && height >= 0 && width >= 0 && v.size(1) == height * width,
              "v must be (B, H·W, C), got ", v.sizes(), " for (H, W) = (", height, ", ", width,
              ")");
}

void check_like(const char* name, const at::Tensor& x, const at::Tensor& v,
                at::IntArrayRef shape) {
  TORCH_CHECK(x.scalar_type() == v.scalar_type() && x.device() == v.device() && x.sizes() == shape,
              name, " must be ", shape, " with the dtype and the device of v, ", v.scalar_type(),
              " on ", v.device(), ", got ", x.sizes(), ", ", x.scalar_type(), " on ", x.device());
}

// The tokens in place if the loops can read them, else a padded copy.
at::Tensor tokens(const at::Tensor& v) {
  return v.size(-1) % kLanes == 0 && v.stride(-1) == 1 ? accumulator(v) : padded(v);
}

at::Tensor convolve_tokens(const at::Tensor& v, const at::Tensor& filters,
                           const std::optional<at::Tensor>& bias, int64_t height, int64_t width) {
  check_map(v, height, width);
  const auto images = v.size(0), channels = v.size(2);
  check_like("filters", filters, v, {images, channels, 3, 3});
  if (bias) check_like("bias", *bias, v, {channels});
  const auto maps = tokens(v), taps = padded(filters.flatten(2).mT());
  const Shape shape{height, width, taps.size(-1), maps.stride(1)};
  const auto constant = bias ? padded(*bias) : at::zeros({shape.channels}, maps.options());
  auto out = at::empty({images, height * width, shape.channels}, maps.options());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "convolve_tokens", [&] {
    const auto* map = maps.const_data_ptr<scalar_t>();
    const auto* filter = taps.const_data_ptr<scalar_t>();
    const auto* offset = constant.const_data_ptr<scalar_t>();
    auto* result = out.mutable_data_ptr<scalar_t>();
    const auto row = width * shape.channels, map_stride = maps.stride(0);
    at::parallel_for(0, images * height, kGrain / (kTaps * std::max<int64_t>(1, row)) + 1,
                     [&](int64_t begin, int64_t end) {
      const auto convolve = [](auto... args) __attribute__((always_inline)) {
        convolve_row(args...);
      };
      for (auto i = begin; i < end; ++i) {
        const auto image = i / height;
        vectorized(convolve, map + image * map_stride, filter + image * kTaps * shape.channels,
                   offset, result + i * row, i % height, shape);
      }
    });
  });
  return out.narrow(-1, 0, channels).to(v.scalar_type()).contiguous();
}

at::Tensor correlate_tokens(const at::Tensor& grad, const at::Tensor& v, int64_t height,
                            int64_t width) {
  check_map(v, height, width);
  check_like("grad", grad, v, v.sizes());
  const auto images = v.size(0), channels = v.size(2);
  const auto maps = tokens(v), grads = padded(grad);
  const Shape shape{height, width, grads.size(-1), maps.stride(1)};
  const auto parts = std::clamp<int64_t>(kParts / std::max<int64_t>(1, images), 1, height + 1);
  auto sums = at::zeros({images, parts, kTaps, shape.channels}, maps.options());
  AT_DISPATCH_FLOATING_TYPES(sums.scalar_type(), "correlate_tokens", [&] {
    const auto* map = maps.const_data_ptr<scalar_t>();
    const auto* factor = grads.const_data_ptr<scalar_t>();
    auto* result = sums.mutable_data_ptr<scalar_t>();
    const auto row = width * shape.channels, map_stride = maps.stride(0);
    const auto terms = kTaps * row * (height / parts + 1);
    at::parallel_for(0, images * parts, kGrain / std::max<int64_t>(1, terms) + 1,
                     [&](int64_t begin, int64_t end) {
      const auto correlate = [](auto... args) __attribute__((always_inline)) {
        correlate_row(args...);
      };
      for (auto i = begin; i < end; ++i) {
        const auto image = i / parts, part = i % parts;
        for (auto y = height * part / parts; y < height * (part + 1) / parts; ++y) {
          vectorized(correlate, factor + (image * height + y) * row, map + image * map_stride,
                     result + i * kTaps * shape.channels, y, shape);
        }
      }
    });
  });
  return sums.sum(1).narrow(-1, 0, channels).mT().reshape({images, channels, 3, 3})
      .to(v.scalar_type()).contiguous();
}

}  // namespace
}  // namespace soft_mm

TORCH_LIBRARY_FRAGMENT(soft_mm, m) {
  m.def("convolve_tokens(Tensor v, Tensor filters, Tensor? bias, SymInt height, SymInt width) -> Tensor");
  m.def("correlate_tokens(Tensor grad, Tensor v, SymInt height, SymInt width) -> Tensor");
}

TORCH_LIBRARY_IMPL(soft_mm, CPU, m) {
  m.impl("convolve_tokens", soft_mm::convolve_tokens);
  m.impl("correlate_tokens", soft_mm::correlate_tokens);
}
