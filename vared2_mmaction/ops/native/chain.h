// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// Blocks of layers that are executed one after the other, so that the host has nothing to do between
// them, and maps that nobody else sees are overwritten.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "gate.h"
#include "layer.h"

namespace vared2 {

// A layer, and what decides for it.
struct Step {
  const Layer* layer;
  const Gate* gate;  // sees the layer's input; null where the layer has no choice
  float floor;
  std::optional<std::vector<std::array<int64_t, 2>>> forced;  // options, of all clips or of each
  bool relu, skip;
};

struct Block {
  std::vector<Step> first, beside;
  Step last;
  bool adds;  // whether the last step adds what the steps beside the others make of the input
};

struct Executed {
  int64_t blocks = 0;  // that were executed as a whole
  at::Tensor y;        // output of the last step that was executed, none of those beside others
  at::Tensor entered;  // input of the next block
  // Of each clip, by each step that was executed; of all clips as one, where it had no choice.
  std::vector<std::vector<Charge>> charges;
  std::optional<PlanKey> missing;  // what the next step has to be told first
};

// Execute blocks, as far as they go. A residual that is given is what the first block adds. Throws
// NotFinite for the first step; steps behind it are left to be executed alone, which names the layer.
Executed execute(const std::vector<Block>& blocks, const at::Tensor& x,
                 const std::optional<at::Tensor>& residual);

}  // namespace vared2
