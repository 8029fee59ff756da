// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// Convolutions that hand over what they compute while it is in the cache.
//
// For every tap of the kernels a convolution is a product of two matrices: positions by input
// channels, which lie in the input as the product reads them, and input by output channels. The
// products are oneDNN's, those that its own convolutions are made of.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "clips.h"

namespace vared2 {

// What a convolution in 3-D reads, in time, height and width.
struct Window {
  std::array<int64_t, 3> kernel, stride, padding, dilation;

  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  // Whether a position is made from what lies at the same position of some frames.
  bool along_time() const;
  // Whether it is one in 2-D for oneDNN, on views of clips; see `forms.has_2d_form`.
  bool in_2d() const { return along_time() || (kernel[0] == 1 && padding[0] == 0); }
  // Geometry of the output of clips.
  Clips output(const Clips& clips, int64_t channels) const;
};

// What of a layer is computed, and of which clips of an input.
struct Part {
  const std::vector<int64_t>& rows;
  int64_t channels;  // the first so many
  int64_t step;      // every step-th frame
};

class TiledConvolution {
 public:
  // Whether this processor has the products.
  static bool available();

  // kernels: (C', C, k_t, k_h, k_w); bias: (C') or nothing.
  TiledConvolution(const at::Tensor& kernels, const std::optional<at::Tensor>& bias,
                   const Window& window);

  // Positions of a frame, (positions, channels), from `first` on. `clip` and `frame` count what is
  // computed.
  using Receive = std::function<void(const float* computed, int64_t clip, int64_t frame,
                                     int64_t first, int64_t positions)>;

  // Hand over tile by tile what is computed of clips that lie dense, from several threads.
  void convolve(const float* x, const Clips& in, const Part& part, const Receive& receive) const;

  // Whether that leaves no thread without a tile; small maps are better computed as a whole.
  bool occupies_threads(const Clips& in, const Part& part) const;

  // All that is computed, (clips, frames, positions, channels).
  at::Tensor convolve(const float* x, const Clips& in, const Part& part) const;

  const at::Tensor& kernels() const { return kernels_; }

 private:
  class Grid;

  // Positions that are computed, of all frames and clips.
  int64_t positions(const Clips& in, const Part& part) const;

  // Compute a block of channels of some runs into what begins with the first of them.
  void compute(const float* x, const Grid& grid, int64_t begin, int64_t end, int64_t block,
               float* computed) const;

  Window window_;
  int64_t inputs_;
  at::Tensor kernels_;  // (blocks, taps, C, channels of a block)
  at::Tensor bias_;     // (C')
};

}  // namespace vared2
