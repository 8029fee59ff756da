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

#include "blend.h"
#include "clips.h"
#include "options.h"
#include "planned.h"
#include "tiles.h"

namespace vared2 {

// Weights of the channel options of a clip, and of its temporal options.
using Weights = std::array<std::vector<float>, 2>;

// What a layer charges: each clip, (N, 5) in float64 with the columns `cost.COLUMNS`; a stock
// convolution, all clips together, multiply-adds.
using Charges = std::variant<at::Tensor, int64_t>;

// A gate gave a clip a weight that is no number, or infinite.
struct NotFinite : std::runtime_error {
  NotFinite() : std::runtime_error("the weights of the gate are not finite") {}
};

// What a plan is for: number of clips, frames, rows and columns of the input, channel and temporal
// option.
using PlanKey = std::array<int64_t, 6>;

struct Kernels {
  at::Tensor weight;  // (C', C, k_t, k_h, k_w)
  std::optional<at::Tensor> bias;
};

// What makes each of some clips; null where a clip is computed as a whole.
using Recipes = std::vector<std::shared_ptr<const Recipe>>;

// Channel options in use, and temporal ones, rising; others have no weight, whatever a gate says.
using InUse = std::array<std::vector<int64_t>, 2>;

class Layer {
 public:
  // Clips of a 2-D network have `segments` frames. A stock convolution is not dynamic.
  Layer(bool dynamic, Factors factors, InUse in_use, const Costs& costs, const Kernels& kernels,
        const Window& window, int64_t segments);

  // Whether kernels of so many input channels can be executed tile by tile, in any window.
  static bool can_tile(int64_t inputs);

  // A plan that is there stays.
  void add_plan(const PlanKey& key, int64_t step, View view, torch::jit::Stack arguments,
                View convolved);

  // Weights of the options of every clip from what a gate answered, (N, 2, options), contiguous;
  // where all options of a dimension would be off, the cheapest has the weight `floor`. See
  // `gate.open_options` and `conv.of_options`.
  std::vector<Weights> open(const at::Tensor& answered, float floor, const at::Tensor& x) const;

  // Weights of forced options, one pair for all clips or for each, clamped to the cheapest in use.
  std::vector<Weights> force(const std::vector<std::array<int64_t, 2>>& options,
                             const at::Tensor& x) const;

  // What each clip gets where one option of each dimension is in use; nothing where there is a
  // choice.
  std::optional<std::vector<Policy>> without_choice(const at::Tensor& x) const;

  // What each clip gets. Throws NotFinite.
  std::vector<Policy> decide(const std::vector<Weights>& weights) const;

  // The output, in as many dimensions as the input, or what has to be planned first.
  std::variant<at::Tensor, PlanKey> execute(const at::Tensor& x,
                                            const std::vector<Policy>& policies,
                                            const Epilogue& epilogue) const;

  // What clips of an input are charged.
  Charges charge(const at::Tensor& x, const std::vector<Policy>& policies) const;

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
  bool by_tiles(const Clips& in, const Clips& out, const std::vector<Policy>& policies,
                bool adds) const;
  const TiledConvolution& tiles() const;
  Recipes recipes(const Group& group, const std::vector<Policy>& policies) const;
  Recipe recipe(const Policy& policy) const;
  // Number of temporal options that an input leaves, in use or not, and the options in use.
  int64_t temporal_options(const at::Tensor& x) const;
  InUse available(const at::Tensor& x) const;

  bool dynamic_;
  Factors factors_;
  InUse in_use_;
  Costs costs_;
  int64_t inputs_;
  Window window_;
  int64_t segments_;
  mutable Tiles tiles_;
  std::map<PlanKey, Plan> plans_;
  mutable std::shared_mutex planning_;  // other threads may execute meanwhile
};

}  // namespace vared2
