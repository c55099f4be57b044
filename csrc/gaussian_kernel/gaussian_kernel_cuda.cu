// The exact Gaussian kernel: CUDA implementations.

#include "gaussian_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

namespace soft_mm {
namespace {

constexpr int kThreads = 256;
// Resident blocks per multiprocessor, at least. More of them would leave a thread so few registers
// that some spill on sm_80, sm_100 or sm_120.
template <typename T>
constexpr int kBlocks = sizeof(at::opmath_type<T>) == 4 ? 2 : 1;
// Padding of the rows of shared tiles. It puts neighbours in a column into different banks and
// keeps rows aligned to 16 bytes for vector loads.
constexpr int kPad = 4;

// A matrix with any strides.
template <typename T>
struct Matrix {
  const T* data;
  int64_t rows, columns, row_stride, column_stride;

  // The submatrix from this row and column to the end.
  __device__ Matrix from(int64_t row, int64_t column) const {
    return {data + row * row_stride + column * column_stride, rows - row, columns - column,
            row_stride, column_stride};
  }
  __device__ T operator()(int64_t row, int64_t column) const {
    return data[row * row_stride + column * column_stride];
  }
};

// A batch of matrices of the same shape, with two leading dimensions of any strides.
template <typename T>
struct Stack {
  Matrix<T> first;
  int inner;
  int64_t outer_stride, inner_stride;

  __device__ Matrix<T> operator[](int l) const {
    auto matrix = first;
    matrix.data += l / inner * outer_stride + l % inner * inner_stride;
    return matrix;
  }
};

// Calls put(row, column, value) for each element of the upper left kRows × kColumns of a matrix,
// with zeros outside of it. The threads of the block share the elements. Neighbouring threads visit
// neighbours in a column (`down`) or in a row, so that loads coalesce.
template <typename A, int kRows, int kColumns, typename T, typename Put>
__device__ __forceinline__ void visit(const Matrix<T>& matrix, bool down, const Put& put) {
  static_assert(kThreads % kRows == 0 && kThreads % kColumns == 0);
  int row = down ? threadIdx.x % kRows : threadIdx.x / kColumns;
  int column = down ? threadIdx.x / kRows : threadIdx.x % kColumns;
  const int row_step = down ? 0 : kThreads / kColumns;
  const int column_step = down ? kThreads / kRows : 0;
  const int rows = min(matrix.rows, int64_t(kRows));
  const int columns = min(matrix.columns, int64_t(kColumns));
  const T* data = matrix.data + row * matrix.row_stride + column * matrix.column_stride;
  const int64_t step = row_step * matrix.row_stride + column_step * matrix.column_stride;
#pragma unroll
  for (int n = 0; n < kRows * kColumns / kThreads; ++n) {
    const bool inside = row < rows && column < columns;
    put(row, column, inside ? static_cast<A>(*data) : A(0));
    row += row_step;
    column += column_step;
    data += step;
  }
}

// Loads the first kTokens × kChannels of a matrix of tokens, relative to an origin, into a shared
// tile, which is stored channel by channel. Channels outside of the matrix are 0 if the origin's are.
template <typename A, int kTokens, int kChannels, int kPitch, typename T>
__device__ __forceinline__ void load(A* tile, const Matrix<T>& tokens, const A* origin) {
  visit<A, kTokens, kChannels>(tokens, tokens.row_stride == 1,
                               [=](int token, int channel, A value) {
                                 tile[channel * kPitch + token] = value - origin[channel];
                               });
}

// Distances: a block computes a tile of 128 rows × 64 columns and each thread 8 × 4 elements of it.
// A thread's rows are consecutive for vector loads; its columns are 16 apart for coalesced stores.
namespace distance_tile {
constexpr int kRows = 128, kColumns = 64, kChunk = 16;
constexpr int kThreadRows = 8, kThreadColumns = 4, kColumnStep = kColumns / kThreadColumns;
constexpr int kPitch = kRows + kColumns + kPad;
static_assert(kRows / kThreadRows * kColumnStep == kThreads);
}  // namespace distance_tile

template <bool kExp, typename A>
__device__ __forceinline__ A result(A squared_distance) {
  return kExp ? exp(A(-0.5) * squared_distance) : squared_distance;
}

// out (L, N, m), contiguous: ‖q_i − k_j‖², or exp(−½ ‖q_i − k_j‖²) with kExp.
//
// ‖q‖² + ‖k‖² − 2q·k takes one multiply-add per channel but loses digits to cancellation, the more
// the further the tokens are from the origin. The origin is therefore moved halfway between the mean
// of q and that of k, both (L, d): far sets are then on opposite sides of it. If the result is still
// below a quarter of ‖q‖² + ‖k‖², or NaN, the thread recomputes it from the differences, which are
// exactly 0 for equal tokens.
template <bool kExp, typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    distance_kernel(const Stack<T> qs, const Stack<T> ks,
                    const at::opmath_type<T>* __restrict__ q_means,
                    const at::opmath_type<T>* __restrict__ k_means, T* __restrict__ out,
                    int row_tiles, int column_tiles) {
  using namespace distance_tile;
  using A = at::opmath_type<T>;
  __shared__ __align__(16) A tile[kChunk * kPitch];  // for each channel, q's rows, then k's
  __shared__ A norms[kRows + kColumns];
  __shared__ A origin[kMaxWidth];  // with zeros from d on

  const int l = blockIdx.x / column_tiles / row_tiles;
  const int64_t row = int64_t(blockIdx.x / column_tiles % row_tiles) * kRows;
  const int64_t column = int64_t(blockIdx.x % column_tiles) * kColumns;
  const auto q = qs[l].from(row, 0), k = ks[l].from(column, 0);
  const int own_row = threadIdx.x / kColumnStep * kThreadRows;
  const int own_column = threadIdx.x % kColumnStep;

  static_assert(kMaxWidth <= kThreads && kMaxWidth % kChunk == 0);
  if (threadIdx.x < kMaxWidth) {
    const auto at = l * q.columns + threadIdx.x;
    const bool inside = threadIdx.x < q.columns;
    origin[threadIdx.x] = inside ? A(0.5) * (q_means[at] + k_means[at]) : A(0);
  }
  __syncthreads();

  A products[kThreadRows][kThreadColumns] = {};
  A norm = 0;  // of token threadIdx.x of the tile, counting q's rows, then k's
  for (int channel = 0; channel < q.columns; channel += kChunk) {
    load<A, kRows, kChunk, kPitch>(tile, q.from(0, channel), origin + channel);
    load<A, kColumns, kChunk, kPitch>(tile + kRows, k.from(0, channel), origin + channel);
    __syncthreads();
    if (threadIdx.x < kRows + kColumns) {
#pragma unroll
      for (int c = 0; c < kChunk; ++c) {
        const A value = tile[c * kPitch + threadIdx.x];
        norm = fma(value, value, norm);
      }
    }
#pragma unroll
    for (int c = 0; c < kChunk; ++c) {
      A a[kThreadRows], b[kThreadColumns];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) a[i] = tile[c * kPitch + own_row + i];
#pragma unroll
      for (int j = 0; j < kThreadColumns; ++j) {
        b[j] = tile[c * kPitch + kRows + own_column + j * kColumnStep];
      }
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadColumns; ++j) {
          products[i][j] = fma(a[i], b[j], products[i][j]);
        }
      }
    }
    __syncthreads();
  }
  if (threadIdx.x < kRows + kColumns) norms[threadIdx.x] = norm;
  __syncthreads();

  const int64_t m = ks.first.rows;
  out += (l * qs.first.rows + row) * m + column;
  unsigned cancelled = 0;  // one bit for each of the thread's results: set if it needs differences
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < kThreadColumns; ++j) {
      const int r = own_row + i, c = own_column + j * kColumnStep;
      if (r < q.rows && c < k.rows) {
        const A terms = norms[r] + norms[kRows + c];
        const A squared_distance = fma(A(-2), products[i][j], terms);
        if (squared_distance >= A(0.25) * terms) {
          out[r * m + c] = static_cast<T>(result<kExp>(squared_distance));
        } else {
          cancelled |= 1u << (i * kThreadColumns + j);
        }
      }
    }
  }
  for (; cancelled; cancelled &= cancelled - 1) {
    const int bit = __ffs(cancelled) - 1;
    const int r = own_row + bit / kThreadColumns;
    const int c = own_column + bit % kThreadColumns * kColumnStep;
    A squared_distance = 0;
    for (int64_t channel = 0; channel < q.columns; ++channel) {
      const A difference = static_cast<A>(q(r, channel)) - static_cast<A>(k(c, channel));
      squared_distance = fma(difference, difference, squared_distance);
    }
    out[r * m + c] = static_cast<T>(result<kExp>(squared_distance));
  }
}

// Weighted differences: a block computes 64 rows × 32 channels and loops over the columns in tiles
// of 32. A warp computes 8 of the rows, each of its threads one channel.
namespace difference_tile {
constexpr int kRows = 64, kColumns = 32, kChannels = 32;
constexpr int kThreadRows = kRows * kChannels / kThreads;
constexpr int kWeightPitch = kRows + kPad, kTokenPitch = kChannels + kPad;
// Minimum number of columns per block if the sum over columns is split.
constexpr int64_t kColumnsOfSplit = 16 * kColumns;
}  // namespace difference_tile

// out (splits, L, N, d), contiguous: Σ_j w_ij f_ij (k_j − q_i), where each split sums over `split`
// columns, a multiple of the tile's. If factors has no data, f is 1.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    difference_kernel(const Stack<T> weights, const Stack<T> factors, const Stack<T> qs,
                      const Stack<T> ks, at::opmath_type<T>* __restrict__ out, int matrices,
                      int row_tiles, int channel_tiles, int64_t split) {
  using namespace difference_tile;
  using A = at::opmath_type<T>;
  __shared__ __align__(16) A weight_tile[kColumns * kWeightPitch];
  __shared__ A token_tile[kColumns * kTokenPitch];

  const int matrix = blockIdx.x / channel_tiles / row_tiles;  // counted over all splits
  const int64_t row = int64_t(blockIdx.x / channel_tiles % row_tiles) * kRows;
  const int64_t channel = int64_t(blockIdx.x % channel_tiles) * kChannels;
  const int l = matrix % matrices;
  const auto weight = weights[l].from(row, 0), factor = factors[l].from(row, 0);
  const auto q = qs[l].from(row, channel), k = ks[l].from(0, channel);
  const int own_row = threadIdx.x / kChannels * kThreadRows;
  const int own_channel = threadIdx.x % kChannels;

  A own[kThreadRows], sum[kThreadRows] = {};
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const bool inside = own_row + i < q.rows && own_channel < q.columns;
    own[i] = inside ? static_cast<A>(q(own_row + i, own_channel)) : A(0);
  }
  const int64_t begin = matrix / matrices * split;
  const int64_t end = min(begin + split, k.rows);
  const bool down = weight.row_stride == 1;
  for (int64_t column = begin; column < end; column += kColumns) {
    visit<A, kRows, kColumns>(weight.from(0, column), down, [&](int i, int j, A value) {
      weight_tile[j * kWeightPitch + i] = value;
    });
    if (factor.data) {  // no barrier: each thread visits the elements that it has just stored
      visit<A, kRows, kColumns>(factor.from(0, column), down, [&](int i, int j, A value) {
        weight_tile[j * kWeightPitch + i] *= value;
      });
    }
    visit<A, kColumns, kChannels>(k.from(column, 0), k.row_stride == 1, [&](int j, int c, A value) {
      token_tile[j * kTokenPitch + c] = value;
    });
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const A token = token_tile[j * kTokenPitch + own_channel];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        sum[i] = fma(weight_tile[j * kWeightPitch + own_row + i], token - own[i], sum[i]);
      }
    }
    __syncthreads();
  }

  const int64_t d = qs.first.columns;
  out += (matrix * qs.first.rows + row) * d + channel;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    if (own_row + i < q.rows && own_channel < q.columns) {
      out[(own_row + i) * d + own_channel] = sum[i];
    }
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Number of blocks of a launch, checked against the limit of the grid.
int grid(int64_t blocks) {
  TORCH_CHECK(blocks <= std::numeric_limits<int>::max(),
              "the result for q and k must have at most ", std::numeric_limits<int>::max(),
              " tiles, got ", blocks);
  return static_cast<int>(blocks);
}

// Reshapes (..., rows, columns) to two leading dimensions. More of them are flattened, as a view if
// the strides allow it, else as a copy.
at::Tensor with_two_leading(at::Tensor x) {
  while (x.dim() < 4) x = x.unsqueeze(0);
  return x.flatten(0, x.dim() - 4);
}

// The Stack of a tensor returned by with_two_leading.
template <typename T>
Stack<T> stack(const at::Tensor& x) {
  return {{x.const_data_ptr<T>(), x.size(2), x.size(3), x.stride(2), x.stride(3)},
          static_cast<int>(x.size(1)), x.stride(0), x.stride(1)};
}

template <bool kExp>
at::Tensor distances(const at::Tensor& q, const at::Tensor& k) {
  using namespace distance_tile;
  check_tokens(q, k);
  const c10::cuda::CUDAGuard guard(q.device());
  auto shape = q.sizes().vec();
  shape.back() = k.size(-2);
  auto out = at::empty(shape, q.options());
  if (out.numel() == 0) return out;

  const auto row_tiles = ceil_div(q.size(-2), kRows), column_tiles = ceil_div(k.size(-2), kColumns);
  const auto matrices = out.numel() / (q.size(-2) * k.size(-2));
  const auto blocks = grid(matrices * row_tiles * column_tiles);
  const auto qs = with_two_leading(q), ks = with_two_leading(k);
  const auto dtype = at::toOpMathType(q.scalar_type());
  const auto q_means = q.mean(-2, false, dtype).contiguous();
  const auto k_means = k.mean(-2, false, dtype).contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, q.scalar_type(), "distances", [&] {
    distance_kernel<kExp><<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        stack<scalar_t>(qs), stack<scalar_t>(ks),
        q_means.const_data_ptr<at::opmath_type<scalar_t>>(),
        k_means.const_data_ptr<at::opmath_type<scalar_t>>(), out.mutable_data_ptr<scalar_t>(),
        row_tiles, column_tiles);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

at::Tensor weighted_differences(const at::Tensor& weight, const std::optional<at::Tensor>& factor,
                                const at::Tensor& q, const at::Tensor& k) {
  using namespace difference_tile;
  check_weights(weight, factor, q, k);
  const c10::cuda::CUDAGuard guard(q.device());
  if (weight.numel() == 0) return at::zeros(q.sizes(), q.options());

  const auto m = k.size(-2);
  const auto row_tiles = ceil_div(q.size(-2), kRows);
  const auto channel_tiles = ceil_div(q.size(-1), kChannels);
  const auto matrices = weight.numel() / (q.size(-2) * m);
  // With few rows there are few blocks. The sum over columns is then split between more blocks, up
  // to about four per multiprocessor.
  const auto blocks = matrices * row_tiles * channel_tiles;
  const auto wanted =
      ceil_div(4 * at::cuda::getCurrentDeviceProperties()->multiProcessorCount, blocks);
  const auto allowed = std::min(wanted, ceil_div(m, kColumnsOfSplit));
  const auto split = ceil_div(ceil_div(m, allowed), kColumns) * kColumns;
  const auto splits = ceil_div(m, split);

  auto shape = q.sizes().vec();
  shape.insert(shape.begin(), splits);
  const auto sums = at::empty(shape, q.options().dtype(at::toOpMathType(q.scalar_type())));
  const auto ws = with_two_leading(weight), qs = with_two_leading(q), ks = with_two_leading(k);
  const auto fs = factor ? with_two_leading(*factor) : at::Tensor();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, q.scalar_type(), "weighted_differences", [&] {
        difference_kernel<<<grid(splits * blocks), kThreads, 0,
                            c10::cuda::getCurrentCUDAStream()>>>(
            stack<scalar_t>(ws), factor ? stack<scalar_t>(fs) : Stack<scalar_t>{{}, 1, 0, 0},
            stack<scalar_t>(qs), stack<scalar_t>(ks),
            sums.mutable_data_ptr<at::opmath_type<scalar_t>>(), matrices, row_tiles, channel_tiles,
            split);
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return sums.sum(0).to(q.scalar_type());
}

at::Tensor squared_distance(const at::Tensor& q, const at::Tensor& k) {
  return distances<false>(q, k);
}

at::Tensor exact_gaussian_kernel(const at::Tensor& q, const at::Tensor& k) {
  return distances<true>(q, k);
}

}  // namespace
}  // namespace soft_mm

TORCH_LIBRARY_IMPL(soft_mm, CUDA, m) {
  m.impl("squared_distance", soft_mm::squared_distance);
  m.impl("exact_gaussian_kernel", soft_mm::exact_gaussian_kernel);
  m.impl("weighted_differences", soft_mm::weighted_differences);
}
