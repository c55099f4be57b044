// What the CPU and the CUDA implementations share: the checks of the arguments.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace soft_mm {

// The widest heads that the ops take, in channels.
constexpr int64_t kMaxWidth = 128;

// Raises unless q is (..., N, d) and k (..., m, d), both of one floating dtype and on one device.
void check_tokens(const at::Tensor& q, const at::Tensor& k);

// Raises unless q and k pass check_tokens, and weight and factor are like them and (..., N, m).
void check_weights(const at::Tensor& weight, const std::optional<at::Tensor>& factor,
                   const at::Tensor& q, const at::Tensor& k);

}  // namespace soft_mm
