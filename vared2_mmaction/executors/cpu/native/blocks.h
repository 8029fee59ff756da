// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// Blocks of layers that are executed one after the other, so that the host has nothing to do between
// them, and maps that nobody else sees are overwritten.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "gate.h"
#include "layer.h"

namespace vared2 {

// A layer, and what decides for it: given weights, forced options, or its gate.
struct Step {
  std::shared_ptr<Layer> layer;
  std::shared_ptr<Gate> gate;  // sees the layer's input; null where there is no compiled one
  float floor = 0;
  bool relu = false;
  std::optional<std::vector<std::array<int64_t, 2>>> forced;  // of all clips or of each
  std::optional<std::vector<Weights>> weights;                // of each clip
};

struct Block {
  std::vector<Step> first, beside;
  Step last;
  bool adds;  // whether the last step adds what the steps beside the others make of the input
};

struct Executed {
  int64_t blocks = 0;            // that were executed as a whole
  at::Tensor y;                  // output of the last step that was executed, none of those beside
  at::Tensor entered;            // input of the next block
  std::vector<Charges> charges;  // by each step that was executed
  std::optional<PlanKey> missing;  // what the next step has to be told first
};

// Execute blocks, as far as they go. A residual that is given is what the first block adds. Throws
// NotFinite for the first step; steps behind it are left to be executed alone, which names the layer.
Executed execute(const std::vector<Block>& blocks, const at::Tensor& x,
                 const std::optional<at::Tensor>& residual);

}  // namespace vared2
