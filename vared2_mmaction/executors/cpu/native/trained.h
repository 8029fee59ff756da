// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// Blending with gradients, for clips that lie as N T H W C.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <vector>

namespace vared2 {

// Blended options of a layer, and frames of its output.
struct Blended {
  std::vector<int64_t> kept, channel, temporal;
  int64_t frames;
};

// Blend computed maps, (N, k, t, H, W), to (N, C, T, H, W). scales: (N, a, b, phases, C), shifts:
// (N, phases, C), of each clip.
at::Tensor blend(const at::Tensor& computed, const at::Tensor& scales, const at::Tensor& shifts,
                 const Blended& of);

// Gradients of `computed`, `scales` and `shifts`.
std::array<at::Tensor, 3> blend_backward(const at::Tensor& gradient, const at::Tensor& computed,
                                         const at::Tensor& scales, const Blended& of);

}  // namespace vared2
