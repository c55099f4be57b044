// Argument checks shared by the CPU and CUDA implementations.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace soft_mm {

// Largest head dimension that the ops support.
constexpr int64_t kMaxWidth = 128;

// Checks that q is (..., N, d) and k is (..., m, d), with the same floating dtype and device.
void check_tokens(const at::Tensor& q, const at::Tensor& k);

// Checks q and k with check_tokens, and that weight and factor are (..., N, m) with the dtype and
// device of q.
void check_weights(const at::Tensor& weight, const std::optional<at::Tensor>& factor,
                   const at::Tensor& q, const at::Tensor& k);

}  // namespace soft_mm
