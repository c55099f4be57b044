// Products with a Gaussian kernel matrix, and their gradients, from tiles that stay in the cache:
// schemas, argument checks and CPU implementation.

#include "../simd.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

namespace soft_mm {
namespace {

// Tokens of the longer and of the shorter set in a tile of the kernel matrix. Two tiles of fp32 take
// 36 KiB.
constexpr int64_t kRows = 48, kColumns = 96;
// Rows of a block of sums that stay in registers: with two registers each, and three for the
// operands, they fit in the 16 registers of AVX2.
constexpr int64_t kBlock = 6;
// Approximate number of partial sums per batch. It does not depend on the number of threads, so the
// same input gives the same bits.
constexpr int64_t kParts = 32;
// Channels are padded to two registers of fp32 in any version.
constexpr int64_t kWide = 32;

int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Replaces x <= 0 by exp(x). Results below the smallest normal number are 0.
template <typename V>
[[gnu::always_inline]] inline void exponentiate(V& x, float) {
  // x = n·ln 2 + r with |r| <= ½ ln 2. Adding the constant rounds x / ln 2 to the integer n, which
  // then stands in the lowest bits of the sum.
  typedef int32_t Bits __attribute__((vector_size(sizeof(V))));
  const V sum = x * 1.44269504f + 12582912.0f;
  const V n = sum - 12582912.0f;
  const V r = x - n * 0.693359375f - n * -2.12194440e-4f;  // ln 2 in two parts
  // The polynomial with the smallest maximum relative error, 3e-9.
  V p = r * 0.0013814467f + 0.00836878084f;
  p = p * r + 0.0416683927f;
  p = p * r + 0.166665196f;
  p = p * r + 0.49999994f;
  p = p * r * r + r + 1.0f;
  const Bits power = ((Bits)sum << 23) + 0x3F800000;  // 2ⁿ
  const V zero = {};
  x = x < -87.0f ? zero : p * (V)power;
}

template <typename V>
[[gnu::always_inline]] inline void exponentiate(V& x, double) {
  for (size_t i = 0; i < sizeof(V) / sizeof(double); ++i) x[i] = std::exp(x[i]);
}

// Calls visit(i, j, sums) for each block of the product of a (rows, terms) and b (terms, columns).
// Element (i, t) of a is a[i * row + t * term], and the rows of b are `width` apart. Blocks cover
// rows rounded up to kBlock and columns rounded up to two registers.
template <typename V, typename T, typename Visit>
[[gnu::always_inline]] inline void multiply(int64_t rows, int64_t columns, int64_t terms, const T* a,
                                            int64_t row, int64_t term, const T* b, int64_t width,
                                            const Visit& visit) {
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  for (int64_t j = 0; j < columns; j += 2 * lanes) {
    for (int64_t i = 0; i < rows; i += kBlock) {
      V sums[kBlock][2] = {};
      const T* factors = a + i * row;
      const T* values = b + j;
      for (int64_t t = 0; t < terms; ++t, factors += term, values += width) {
        const V first = as<V>(values), second = as<V>(values + lanes);
#pragma GCC unroll 6
        for (int64_t s = 0; s < kBlock; ++s) {
          const T factor = factors[s * row];
          sums[s][0] += factor * first;
          sums[s][1] += factor * second;
        }
      }
      visit(i, j, sums);
    }
  }
}

// Adds the product to out, whose rows are `width` apart like those of b.
template <typename V, typename T>
[[gnu::always_inline]] inline void add_product(int64_t rows, int64_t columns, int64_t terms,
                                               const T* a, int64_t row, int64_t term, const T* b,
                                               int64_t width, T* out) {
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  multiply<V>(rows, columns, terms, a, row, term, b, width,
              [=](int64_t i, int64_t j, V(&sums)[kBlock][2]) __attribute__((always_inline)) {
                T* block = out + i * width + j;
#pragma GCC unroll 6
                for (int64_t s = 0; s < kBlock; ++s, block += width) {
                  as<V>(block) += sums[s][0];
                  as<V>(block + lanes) += sums[s][1];
                }
              });
}

// Tokens with d channels, and values or gradients of e channels that belong to them, both padded with
// zeros. `b` is stored a second time channel by channel.
template <typename T>
struct Tokens {
  const T *tokens, *half_norms, *values;
};

template <typename T>
struct Channels {
  const T *tokens, *values;
};

// Sums over the tokens of one set for each token of the other. Those that are not wanted are null.
template <typename T>
struct Sums {
  T *values, *differences, *weights;
};

// Channels d and e, the same with padding, and the number of tokens that one channel stores.
struct Sizes {
  int64_t d, e, padded_d, padded_e, width;
};

// Adds to the sums what `rows` tokens of a and `count` tokens of b contribute:
//
//   a_sums.values_i += Σ_j K_ij b.values_j         b_sums.values_j += Σ_i K_ij a.values_i
//   a_sums.differences_i += Σ_j P_ij b_j           b_sums.differences_j += Σ_i P_ij a_i
//   a_sums.weights_i += Σ_j P_ij                   b_sums.weights_j += Σ_i P_ij
//
// with the kernel matrix K and P_ij = K_ij (a.values_i · b.values_j).
template <typename Registers, typename T>
[[gnu::always_inline]] inline void add_sums(Registers, Tokens<T> a, Tokens<T> b,
                                            Channels<T> channels, Sums<T> a_sums, Sums<T> b_sums,
                                            int64_t rows, int64_t count, Sizes size, T* kernel,
                                            T* weights) {
  using V = typename Vector<T, Registers>::Type;
  constexpr int64_t lanes = Vector<T, Registers>::size;
  for (int64_t first = 0; first < count; first += kColumns) {
    const auto columns = std::min(kColumns, count - first);
    const T* half_norms = b.half_norms + first;
    multiply<V>(rows, columns, size.d, a.tokens, size.padded_d, 1, channels.tokens + first, size.width,
                [=](int64_t i, int64_t j, V(&sums)[kBlock][2]) __attribute__((always_inline)) {
                  const V zero = {};
#pragma GCC unroll 6
                  for (int64_t s = 0; s < kBlock; ++s) {
#pragma GCC unroll 2
                    for (int64_t r = 0; r < 2; ++r) {
                      const auto place = j + r * lanes;
                      V x = sums[s][r] - a.half_norms[i + s] - as<V>(half_norms + place);
                      x = x > 0 ? zero : x;
                      exponentiate(x, T());
                      as<V>(kernel + (i + s) * kColumns + place) = x;
                    }
                  }
                });
    if (a_sums.values) {
      add_product<V>(rows, size.e, columns, kernel, kColumns, 1, b.values + first * size.padded_e,
                     size.padded_e, a_sums.values);
    }
    if (b_sums.values) {
      add_product<V>(columns, size.e, rows, kernel, 1, kColumns, a.values, size.padded_e,
                     b_sums.values + first * size.padded_e);
    }
    if (!a_sums.differences) continue;
    T* column_weights = b_sums.weights + first;
    multiply<V>(rows, columns, size.e, a.values, size.padded_e, 1, channels.values + first, size.width,
                [=](int64_t i, int64_t j, V(&sums)[kBlock][2]) __attribute__((always_inline)) {
                  V totals[2] = {};
#pragma GCC unroll 6
                  for (int64_t s = 0; s < kBlock; ++s) {
#pragma GCC unroll 2
                    for (int64_t r = 0; r < 2; ++r) {
                      const auto place = (i + s) * kColumns + j + r * lanes;
                      const V weight = sums[s][r] * as<V>(kernel + place);
                      as<V>(weights + place) = weight;
                      as<V>(a_sums.weights + (i + s) * kLanes) += weight;
                      totals[r] += weight;
                    }
                  }
                  as<V>(column_weights + j) += totals[0];
                  as<V>(column_weights + j + lanes) += totals[1];
                });
    add_product<V>(rows, size.d, columns, weights, kColumns, 1, b.tokens + first * size.padded_d,
                   size.padded_d, a_sums.differences);
    add_product<V>(columns, size.d, rows, weights, 1, kColumns, a.tokens, size.padded_d,
                   b_sums.differences + first * size.padded_d);
  }
}

// Offsets of the matrices of x (..., rows, columns) from its first element.
std::vector<int64_t> offsets_of_matrices(const at::Tensor& x) {
  std::vector<int64_t> offsets = {0};
  for (int64_t dim = 0; dim < x.dim() - 2; ++dim) {
    std::vector<int64_t> inner;
    for (const auto offset : offsets) {
      for (int64_t i = 0; i < x.size(dim); ++i) inner.push_back(offset + i * x.stride(dim));
    }
    offsets = std::move(inner);
  }
  return offsets;
}

// Tokens or values as the loops read them: (L, n, c), contiguous, padded with zeros.
struct Packed {
  at::Tensor rows, half_norms;
};

// Subtracts the centre from a token and returns half the square of its norm.
template <typename T>
T centre_token(T* token, const T* centre, int64_t channels) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < channels; ++c) {
    token[c] -= centre[c];
    sum += token[c] * token[c];
  }
  return sum / 2;
}

// Packs x (..., n, c) in `dtype`, minus a centre (..., 1, c) of this dtype for each matrix if one is
// given. The number of rows is rounded up to a multiple of `multiple`, c to one of kWide.
Packed pack(const at::Tensor& x, int64_t multiple, at::ScalarType dtype,
            const at::Tensor& minus = {}) {
  const auto source = x.stride(-1) == 1 ? x : x.contiguous();
  const auto offsets = offsets_of_matrices(source);
  const auto count = static_cast<int64_t>(offsets.size());
  const auto n = x.size(-2), channels = x.size(-1);
  const auto rows = round_up(n, multiple), width = round_up(channels, kWide);
  Packed packed{at::empty({count, rows, width}, x.options().dtype(dtype)),
                at::empty({count, rows}, x.options().dtype(dtype))};
  const auto fill = [&](auto zero, const auto* data) {
    using T = decltype(zero);
    const auto* centres = minus.defined() ? minus.const_data_ptr<T>() : nullptr;
    auto* out = packed.rows.mutable_data_ptr<T>();
    auto* norms = packed.half_norms.mutable_data_ptr<T>();
    at::parallel_for(0, count * rows, kGrain / width, [&](int64_t begin, int64_t end) {
      for (auto i = begin; i < end; ++i) {
        const auto l = i / rows, row = i % rows;
        auto* const to = out + i * width;
        std::fill_n(to, width, zero);
        norms[i] = 0;
        if (row >= n) continue;
        std::copy_n(data + offsets[l] + row * source.stride(-2), channels, to);
        if (centres) norms[i] = centre_token(to, centres + l * channels, channels);
      }
    });
  };
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "pack", [&] {
    const auto* data = source.const_data_ptr<scalar_t>();
    dtype == at::kDouble ? fill(0.0, data) : fill(0.0f, data);
  });
  return packed;
}

// The sums of `add_sums` over all tokens of the longer set a (..., n, d) and the shorter b (..., m, d)
// with values x (..., n, e) of a and y (..., m, e) of b: the values of one set and the gradients of
// the tokens of both. The gradients are computed if x and y are given.
struct Results {
  at::Tensor values, a_gradients, b_gradients;
};

Results sums(const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& x,
             const std::optional<at::Tensor>& y, bool values_of_a) {
  auto dtype = at::kFloat;
  for (const auto& tensor : {a, b, x.value_or(a), y.value_or(a)}) {
    dtype = at::promoteTypes(dtype, tensor.scalar_type());
  }
  // Distances do not change, but the terms of their expansion do not cancel.
  const auto centre = b.mean(-2, true, dtype).contiguous();
  const auto a_packed = pack(a, kBlock, dtype, centre), b_packed = pack(b, kColumns, dtype, centre);
  const auto &a_tokens = a_packed.rows, &b_tokens = b_packed.rows;
  const auto channels = b_tokens.mT().contiguous();
  const bool gradients = x && y;
  const at::Tensor none;  // where sums or values are not wanted
  const at::Tensor a_values = x ? pack(*x, kBlock, dtype).rows : none,
                         b_values = y ? pack(*y, kColumns, dtype).rows : none,
                         value_channels = gradients ? b_values.mT().contiguous() : none;
  const auto n = a.size(-2), m = b.size(-2), e = (x ? *x : *y).size(-1);
  const auto count = a_tokens.size(0), groups = (n + kRows - 1) / kRows;
  const auto parts = std::clamp<int64_t>(kParts / std::max<int64_t>(1, count), 1, groups + 1);
  const Sizes size{a.size(-1), e, a_tokens.size(-1), round_up(e, kWide), b_tokens.size(1)};

  // Parts of a add to sums of their own for all of b.
  const auto options = a_tokens.options();
  const auto zeros_a = [&](int64_t width) {
    return at::zeros({count, a_tokens.size(1), width}, options);
  };
  const auto zeros_b = [&](int64_t width) {
    return at::zeros({count, parts, size.width, width}, options);
  };
  const at::Tensor a_sums = values_of_a ? zeros_a(size.padded_e) : none,
             b_sums = values_of_a ? none : zeros_b(size.padded_e),
             a_differences = gradients ? zeros_a(size.padded_d) : none,
             b_differences = gradients ? zeros_b(size.padded_d) : none,
             a_weights = gradients ? zeros_a(kLanes) : none,
             b_weights = gradients ? zeros_b(1) : none;
  AT_DISPATCH_FLOATING_TYPES(a_tokens.scalar_type(), "gaussian_product", [&] {
    using T = scalar_t;
    // Rows of matrix l from `row` on.
    const auto read = [](const at::Tensor& x, int64_t l, int64_t row = 0) -> const T* {
      return x.defined() ? x.const_data_ptr<T>() + l * x.stride(0) + row * x.stride(1) : nullptr;
    };
    const auto write = [](const at::Tensor& x, int64_t l, int64_t row) -> T* {
      return x.defined() ? x.mutable_data_ptr<T>() + l * x.stride(0) + row * x.stride(1) : nullptr;
    };
    at::parallel_for(0, count * parts, 1, [&](int64_t begin, int64_t end) {
      const auto add = [](auto... args) __attribute__((always_inline)) { add_sums(args...); };
      const auto tiles = at::zeros({2, kRows * kColumns}, options);
      for (auto i = begin; i < end; ++i) {
        const auto l = i / parts, part = i % parts;
        const Tokens<T> tokens{read(b_tokens, l), read(b_packed.half_norms, l), read(b_values, l)};
        const Sums<T> part_sums{write(b_sums, l, part), write(b_differences, l, part),
                                write(b_weights, l, part)};
        for (auto group = groups * part / parts; group < groups * (part + 1) / parts; ++group) {
          const auto row = group * kRows;
          const Tokens<T> rows{read(a_tokens, l, row), read(a_packed.half_norms, l, row),
                               read(a_values, l, row)};
          const Sums<T> row_sums{write(a_sums, l, row), write(a_differences, l, row),
                                 write(a_weights, l, row)};
          vectorized(add, rows, tokens, Channels<T>{read(channels, l), read(value_channels, l)},
                     row_sums, part_sums, std::min(kRows, n - row), m, size, write(tiles, 0, 0),
                     write(tiles, 1, 0));
        }
      }
    });
  });
  const auto trimmed = [](const at::Tensor& sums, const at::Tensor& like, int64_t channels) {
    auto shape = like.sizes().vec();
    shape.back() = channels;
    return sums.narrow(1, 0, like.size(-2)).narrow(2, 0, channels).reshape(shape).contiguous();
  };
  Results results;
  results.values = values_of_a ? trimmed(a_sums, a, e) : trimmed(b_sums.sum(1), b, e);
  if (gradients) {
    const auto gradient = [](at::Tensor differences, const at::Tensor& weights,
                             const at::Tensor& tokens) {
      return differences.addcmul_(weights, tokens, -1);
    };
    results.a_gradients =
        trimmed(gradient(a_differences, a_weights.sum(-1, true), a_tokens), a, size.d);
    results.b_gradients =
        trimmed(gradient(b_differences.sum(1), b_weights.sum(1), b_tokens), b, size.d);
  }
  return results;
}

void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const auto leading = [](const at::Tensor& x) { return x.sizes().slice(0, x.dim() - 2); };
  TORCH_CHECK(q.dim() >= 2 && k.dim() >= 2 && v.dim() >= 2 && leading(q) == leading(k) &&
                  leading(q) == leading(v) && q.size(-1) == k.size(-1) && k.size(-2) == v.size(-2),
              "q must be (..., M, d), k (..., N, d) and v (..., N, e), got ", q.sizes(), ", ",
              k.sizes(), " and ", v.sizes());
}

at::Tensor gaussian_sums(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  check(q, k, v);
  return q.size(-2) >= k.size(-2) ? sums(q, k, {}, v, true).values
                                  : sums(k, q, v, {}, false).values;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gaussian_sums_backward(const at::Tensor& grad,
                                                                      const at::Tensor& q,
                                                                      const at::Tensor& k,
                                                                      const at::Tensor& v) {
  check(q, k, v);
  check(k, q, grad);
  if (q.size(-2) >= k.size(-2)) {
    const auto [values, queries, keys] = sums(q, k, grad, v, false);
    return {queries, keys, values};
  }
  const auto [values, keys, queries] = sums(k, q, v, grad, true);
  return {queries, keys, values};
}

}  // namespace
}  // namespace soft_mm

TORCH_LIBRARY_FRAGMENT(soft_mm, m) {
  m.def("gaussian_sums(Tensor q, Tensor k, Tensor v) -> Tensor");
  m.def("gaussian_sums_backward(Tensor grad, Tensor q, Tensor k, Tensor v)"
        " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(soft_mm, CPU, m) {
  m.impl("gaussian_sums", soft_mm::gaussian_sums);
  m.impl("gaussian_sums_backward", soft_mm::gaussian_sums_backward);
}
