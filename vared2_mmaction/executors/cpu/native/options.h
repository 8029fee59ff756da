// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// What the options of a layer rebuild, and which of them are on.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace vared2 {

// Options of a dimension that are on, dearest first, and their shares, which sum to one.
struct Shares {
  std::vector<int64_t> options;
  std::vector<float> shares;

  int64_t dearest() const { return options.front(); }
  bool single() const { return options.size() == 1; }
  bool operator==(const Shares& other) const = default;
};

// What a clip gets of a layer.
struct Policy {
  Shares channel, temporal;

  bool operator==(const Policy& other) const = default;
  // Whether the same is computed.
  bool together(const Policy& other) const {
    return channel.dearest() == other.channel.dearest() &&
           temporal.dearest() == other.temporal.dearest();
  }
  bool everything() const { return channel.dearest() + temporal.dearest() == 0; }
  // Whether nothing is blended or rebuilt.
  bool whole() const { return channel.single() && temporal.single() && everything(); }
};

// Scale and shift, (2, 2^j, C), of what each pair (i, j) of options rebuilds; see `base.Choice.tables`.
struct Factors {
  std::vector<int64_t> kept;  // channels that each channel option computes
  int64_t temporal;           // number of temporal options
  std::vector<at::Tensor> tables;

  int64_t channels() const { return kept.front(); }
  const float* scale(int64_t i, int64_t j, int64_t phase) const {
    return tables[i * temporal + j].const_data_ptr<float>() + phase * channels();
  }
  const float* shift(int64_t i, int64_t j, int64_t phase) const {
    return scale(i, j, phase) + (channels() << j);
  }
};

// Multiply-adds of an element that is convolved, and of the gate; see `cost.LayerConstants`.
struct Costs {
  int64_t element, gate;
};

}  // namespace vared2
