// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// The output of a clip from what was computed of it, each element once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace vared2 {

// How the output of a clip is made, frame by frame: a sum of scaled computed maps, and a shift.
// Options that read the same maps are added up here, before any map is touched.
class Recipe {
 public:
  // kept: channels that each channel option computes. channel, temporal: options that are mixed,
  // dearest first; what is computed is what the dearest ask for.
  Recipe(const std::vector<int64_t>& kept, const std::vector<int64_t>& channel,
         const std::vector<int64_t>& temporal);

  int64_t phases() const { return static_cast<int64_t>(phases_.size()); }

  // Frames between the one that is written, in a phase, and the one that an option reads.
  int64_t back(int64_t phase, size_t temporal) const { return phase % (int64_t{1} << temporal_[temporal]); }

  // Add what the pair of blended options number a and b contributes to a phase, (C,).
  void add(int64_t phase, size_t a, size_t b, float share, const float* scale);
  float* shift(int64_t phase) { return shift_.data() + phase * channels_; }

  // Whether every frame is made from the computed frame at or before it alone.
  bool local() const;

  // Write the frames that one computed frame makes, at positions side by side, of a local recipe.
  // `residual`, which may be null or `out`, and `out` begin at the first position of a clip's first
  // frame.
  void write_made(const float* computed, int64_t frame, int64_t frames, int64_t area,
                  int64_t positions, const float* residual, bool relu, float* out) const;

  // Write one clip; `residual` may be null or `out`. `computed` and `out` lie as T H W C.
  void write(const float* computed, int64_t frames, int64_t area, const float* residual, bool relu,
             float* out) const;

  // Gradients of one clip: of what was computed, of scales (a, b, phase, C) and of shifts (phase,
  // C). Those of scales and shifts are added.
  void differentiate(const float* gradient, const float* computed, int64_t frames, int64_t area,
                     float* of_computed, float* of_scales, float* of_shifts) const;

 private:
  // A range of channels of the output as a sum over sources.
  struct Source {
    int64_t back;     // how many output frames before the one that is written
    int64_t channel;  // first channel that is read
    std::vector<float> scale;
    std::vector<std::pair<size_t, size_t>> pairs;  // blended options that read it
  };
  struct Segment {
    int64_t begin, end;
    std::vector<Source> sources;
  };

  // Where each source lies, from the position that is written, in what is computed.
  std::vector<int64_t> offsets(const std::vector<Segment>& segments, int64_t frame_step) const;

  // Write positions of one frame, which lie side by side.
  template <bool kResidual, bool kRelu>
  void write_positions(const std::vector<Segment>& segments, const float* shift,
                       const float* computed, int64_t frame_step, int64_t positions,
                       const float* residual, float* out) const;
  using WritePositions = decltype(&Recipe::write_positions<false, false>);
  static WritePositions writing(bool adds, bool relu);
  void differentiate_positions(const std::vector<Segment>& segments, const float* gradient,
                               const float* computed, int64_t frame_step, int64_t positions,
                               float* of_computed, float* sums) const;

  std::vector<int64_t> temporal_;
  int64_t channels_, computed_channels_;
  int64_t step_;  // output frames from one computed frame to the next
  std::vector<std::vector<Segment>> phases_;
  std::vector<float> shift_;  // (phases, C)
};

// Write what is computed as a whole, with what follows it; `residual` may be null or `out`.
void finish(const float* computed, int64_t elements, const float* residual, bool relu, float* out);

}  // namespace vared2
