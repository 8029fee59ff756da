// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// A dynamic convolution of a fused network: groups clips by their dearest options, convolves each
// group by oneDNN and writes the output with what follows.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/stack.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <shared_mutex>
#include <variant>
#include <vector>

#include "blend.h"
#include "clips.h"
#include "gates.h"
#include "options.h"

namespace vared2 {

// Weights of the channel options of a clip, and of its temporal options.
using Weights = std::array<std::vector<float>, 2>;

// What a plan is for: number of clips, frames, rows and columns of the input, channel and temporal
// option, and whether nothing is blended or rebuilt.
using PlanKey = std::array<int64_t, 7>;

struct View {
  std::vector<int64_t> size, stride;
};

// What follows the convolution: a residual, which may be null, is added, then ReLU is applied.
struct Epilogue {
  const at::Tensor* residual = nullptr;
  bool relu = false;
};

// How clips of one geometry are convolved: frames are taken, viewed and convolved.
struct Plan {
  int64_t step;                 // every step-th frame is copied together; 1 takes clips as they lie
  View view;                    // of what is convolved
  torch::jit::Stack arguments;  // of the convolution, from the kernels to the groups
  View convolved;               // of the result
};

class Layer {
 public:
  // kernel, stride, padding and dilation are those of the 3-D convolution of `inputs` channels;
  // clips of a 2-D network have `segments` frames.
  Layer(Factors factors, double saturation, int64_t inputs, std::array<int64_t, 3> kernel,
        std::array<int64_t, 3> stride, std::array<int64_t, 3> padding,
        std::array<int64_t, 3> dilation, int64_t segments);

  // A plan that is there stays.
  void add_plan(const PlanKey& key, int64_t step, View view, torch::jit::Stack arguments,
                View convolved);

  // Weights of the options of every clip from what gate number `gate` of some answered, (N, L,
  // 2, options), contiguous; where all options of a dimension would be off, the cheapest has the weight `floor`.
  std::vector<Weights> open(const at::Tensor& answered, int64_t gate, float floor,
                            const at::Tensor& x) const;

  // Replace weights by forced options, one pair for all clips or for each; they are clamped.
  void force(const std::vector<std::array<int64_t, 2>>& options,
             std::vector<Weights>& weights) const;

  // The output, in as many dimensions as the input, or what has to be planned first.
  std::variant<at::Tensor, PlanKey> execute(const at::Tensor& x,
                                            const std::vector<Weights>& weights,
                                            const Epilogue& epilogue, bool skip) const;

  int64_t segments() const { return segments_; }

 private:
  // Clips whose dearest options are the same.
  struct Group {
    std::vector<int64_t> rows;
    bool whole = true;  // nothing is blended or rebuilt for any of them
  };
  struct Policy {
    Shares channel, temporal;

    bool operator==(const Policy& other) const;
    bool together(const Policy& other) const;
    bool whole() const;
  };

  Shares share(const std::vector<float>& weights) const;
  std::vector<Group> divide(const Clips& clips, const std::vector<Policy>& policies) const;
  PlanKey key(const Clips& clips, const Group& group, const Policy& policy, bool skip) const;
  Clips output(const Clips& clips) const;
  Recipe recipe(const Policy& policy, bool skip) const;
  at::Tensor convolve(const at::Tensor& x, const Clips& clips, const Group& group, const Plan& plan,
                      const Epilogue& epilogue) const;

  Factors factors_;
  double saturation_;
  int64_t inputs_;
  std::array<int64_t, 3> kernel_, stride_, padding_, dilation_;
  int64_t segments_;
  std::map<PlanKey, Plan> plans_;
  mutable std::shared_mutex planning_;  // other threads may execute meanwhile
};

}  // namespace vared2
