// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// Layers that are executed one after the other, so that the host has nothing to do between them.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "gates.h"
#include "layer.h"

namespace vared2 {

// A layer, and what decides for it.
struct Step {
  // Gates that see the input of the layer, or what gates of a block have answered; nothing where
  // there is no choice.
  using Asked = std::variant<std::monostate, const Gates*, at::Tensor>;

  const Layer* layer;
  Asked gates;
  int64_t gate;  // which of them is meant
  float floor;
  std::optional<std::vector<std::array<int64_t, 2>>> forced;  // options, of all clips or of each
  bool relu, skip;

  bool decides() const { return !std::holds_alternative<std::monostate>(gates); }
};

struct Executed {
  int64_t steps;  // that were executed
  at::Tensor y;
  std::vector<std::vector<Charge>> charges;  // of each step's clips, none where it had no choice
  std::optional<PlanKey> missing;            // what the next step has to be told first
};

// Execute steps, as far as they go. The residual, which may be null, is added by the last of them.
// Throws NotFinite for the first step; steps behind it are left to be executed alone, which tells
// the layer.
Executed execute(const std::vector<Step>& steps, const at::Tensor& x, const at::Tensor* residual);

}  // namespace vared2
