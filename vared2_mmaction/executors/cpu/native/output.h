// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// The output of a layer while its clips are written.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "blend.h"
#include "clips.h"
#include "planned.h"
#include "tiles.h"

namespace vared2 {

// What makes each of some clips; null where a clip is computed as a whole.
using Recipes = std::vector<std::shared_ptr<const Recipe>>;

class Output {
 public:
  Output(const Clips& clips, const at::TensorOptions& options, const Epilogue& epilogue);

  // Write some clips from all that was computed of them.
  void write(const at::Tensor& computed, const std::vector<int64_t>& rows, const Recipes& recipes);

  // Writes some clips tile by tile, if what makes them is local; the arguments must outlive it.
  TiledConvolution::Receive writer(const std::vector<int64_t>& rows, const Recipes& recipes);

  // In so many dimensions.
  at::Tensor as_tensor(int64_t dimensions) const { return as_clips(written_, clips_, dimensions); }

 private:
  const float* residual(int64_t offset) const {
    return added_ == nullptr ? nullptr : added_ + offset;
  }

  Clips clips_;
  at::Tensor written_;
  float* to_;
  const float* added_;
  bool relu_;
};

// Whether every frame is made from the computed frame at or before it alone.
bool local(const Recipes& recipes);

}  // namespace vared2
