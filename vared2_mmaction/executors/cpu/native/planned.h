// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// Convolutions by oneDNN, of clips of a geometry that it was asked for before.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <vector>

#include "clips.h"

namespace vared2 {

struct View {
  std::vector<int64_t> size, stride;
};

// What follows the convolution: a residual, which may be null, is added, then ReLU is applied.
struct Epilogue {
  const at::Tensor* residual = nullptr;
  bool relu = false;
  bool overwrites = false;  // whether the output may take the place of the residual
};

// How clips of one geometry are convolved: frames are taken, viewed and convolved.
struct Plan {
  int64_t step;                 // every step-th frame is copied together; 1 takes clips as they lie
  View view;                    // of what is convolved
  torch::jit::Stack arguments;  // of the convolution, from the kernels to the groups
  View convolved;               // of the result

  // Convolve some of the clips in x, which are copied together unless they are neighbours. A
  // residual is that of all clips in x.
  at::Tensor convolve(const at::Tensor& x, const Clips& clips, const std::vector<int64_t>& rows,
                      const Epilogue& epilogue) const;
};

}  // namespace vared2
