// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// The gate of a layer, with BatchNorm folded: descriptor and fully connected layers, for clips that lie as N T H W C.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "clips.h"

namespace vared2 {

class Gate {
 public:
  // first: (inputs, hidden); shift: (hidden); second: (hidden, outputs); beta: (outputs).
  // grid: rows and columns of positions that are read of every frame, at most.
  Gate(at::Tensor first, at::Tensor shift, at::Tensor second, at::Tensor beta, bool motion,
       int64_t grid);

  // Weights of all options before any is switched off, (N, 2, outputs / 2). Clips of a 2-D
  // network have `segments` frames.
  at::Tensor weigh(const at::Tensor& x, int64_t segments) const;

 private:
  // Add what means of the channels of a clip, and their motion, contribute to hidden features.
  void add_hidden(const float* x, const Clips& clips, float* hidden) const;
  // Weights from hidden features, which are overwritten.
  void answer(float* hidden, float* weights) const;

  int64_t outputs() const { return second_.size(1); }

  at::Tensor first_, shift_, second_, beta_;
  bool motion_;
  int64_t grid_;
};

}  // namespace vared2
