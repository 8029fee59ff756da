// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// Clips in memory: dense, with channels innermost.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace vared2 {

// Sizes of clips that lie as N T H W C.
struct Clips {
  int64_t number, frames, rows, columns, channels;

  int64_t area() const { return rows * columns; }
  int64_t frame() const { return area() * channels; }
  int64_t clip() const { return frames * frame(); }
  bool operator==(const Clips& other) const = default;
  int64_t elements() const { return number * clip(); }
};

// Whether (N, C, T, H, W) or (N T, C, H, W) is dense float32 with channels innermost.
inline bool lies_dense(const at::Tensor& x) {
  const auto format =
      x.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
  return x.layout() == at::kStrided && x.scalar_type() == at::kFloat && x.is_cpu() && (x.dim() == 4 || x.dim() == 5) &&
         x.numel() > 0 && x.is_contiguous(format);
}

// Sizes of (N, C, T, H, W), or of (N T, C, H, W) whose clips have `segments` frames.
inline Clips clips_of(const at::Tensor& x, int64_t segments) {
  if (x.dim() == 5) return {x.size(0), x.size(2), x.size(3), x.size(4), x.size(1)};
  return {x.size(0) / segments, segments, x.size(2), x.size(3), x.size(1)};
}

// What lies in memory as clips do, with as many dimensions as asked for.
inline at::Tensor as_clips(const at::Tensor& written, const Clips& of, int64_t dimensions) {
  const int64_t c = of.channels, h = of.rows, w = of.columns;
  if (dimensions == 4)
    return written.as_strided({of.number * of.frames, c, h, w}, {of.frame(), 1, w * c, c});
  return written.as_strided({of.number, c, of.frames, h, w},
                            {of.clip(), 1, of.frame(), w * c, c});
}

}  // namespace vared2
