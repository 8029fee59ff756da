// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// A dynamic convolution of a fused network: groups clips by their dearest options, convolves each
// group, by oneDNN or tile by tile, and writes the output with what follows.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <stdexcept>
#include <variant>
#include <vector>

#include "clips.h"
#include "options.h"
#include "output.h"
#include "planned.h"
#include "tiles.h"

namespace vared2 {

// Weights of the channel options of a clip, and of its temporal options.
using Weights = std::array<std::vector<float>, 2>;

// What a layer charges a clip: the columns are `decision.COLUMNS`.
using Charge = std::array<int64_t, 5>;

// A gate gave a clip a weight that is no number, or infinite.
struct NotFinite : std::runtime_error {
  NotFinite() : std::runtime_error("the weights of the gate are not finite") {}
};

// What a plan is for: number of clips, frames, rows and columns of the input, channel and temporal
// option.
using PlanKey = std::array<int64_t, 6>;

struct Kernels {
  at::Tensor weight;
  std::optional<at::Tensor> bias;
};

class Layer {
 public:
  // Kernels: (C', C, k_t, k_h, k_w); clips of a 2-D network have `segments` frames.
  Layer(Factors factors, const Costs& costs, const Kernels& kernels, const Window& window,
        int64_t segments);

  // Whether kernels of so many input channels can be executed tile by tile, in any window.
  static bool can_tile(int64_t inputs);

  // A plan that is there stays.
  void add_plan(const PlanKey& key, int64_t step, View view, torch::jit::Stack arguments,
                View convolved);

  // Weights of the options of every clip from what a gate answered, (N, 2, options), contiguous;
  // where all options of a dimension would be off, the cheapest has the weight `floor`.
  std::vector<Weights> open(const at::Tensor& answered, float floor, const at::Tensor& x) const;

  // Replace weights by forced options, one pair for all clips or for each; they are clamped.
  void force(const std::vector<std::array<int64_t, 2>>& options,
             std::vector<Weights>& weights) const;

  // What each clip gets. Throws NotFinite.
  std::vector<Policy> decide(const std::vector<Weights>& weights) const;

  // The output, in as many dimensions as the input, or what has to be planned first.
  std::variant<at::Tensor, PlanKey> execute(const at::Tensor& x,
                                            const std::vector<Policy>& policies,
                                            const Epilogue& epilogue, bool skip) const;

  // What clips of an input are charged.
  std::vector<Charge> charge(const at::Tensor& x, const std::vector<Policy>& policies) const;

  int64_t segments() const { return segments_; }
  // Kernels as tiles need them, which take memory beside the layer's own.
  std::vector<at::Tensor> tensors() const;

 private:
  // Clips whose dearest options are the same.
  struct Group {
    std::vector<int64_t> rows;
    bool whole = true;           // nothing is blended or rebuilt for any of them
    const Plan* plan = nullptr;  // of oneDNN; null where it is convolved tile by tile
  };
  // Tiles of the kernels, made by their first use.
  struct Tiles {
    Kernels kernels;
    std::once_flag once;
    std::unique_ptr<const TiledConvolution> made;
  };

  std::vector<Group> divide(const Clips& clips, const std::vector<Policy>& policies,
                            bool tiled) const;
  // Whether tiles take less time than oneDNN, for a batch whose output has a residual added or not.
  bool by_tiles(const Clips& in, const Clips& out, const std::vector<Policy>& policies, bool skip,
                bool adds) const;
  const TiledConvolution& tiles() const;
  PlanKey key(const Clips& clips, const Group& group, const Policy& policy, bool skip) const;
  Recipes recipes(const Group& group, const std::vector<Policy>& policies, bool skip) const;
  Recipe recipe(const Policy& policy, bool skip) const;

  Factors factors_;
  Costs costs_;
  int64_t inputs_;
  Window window_;
  int64_t segments_;
  mutable Tiles tiles_;
  std::map<PlanKey, Plan> plans_;
  mutable std::shared_mutex planning_;  // other threads may execute meanwhile
};

}  // namespace vared2
