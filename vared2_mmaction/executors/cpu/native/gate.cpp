// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "gate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace vared2 {

namespace {

constexpr int64_t kAhead = 6;  // reads that are under way: they are pages apart
constexpr int64_t kLine = 16;  // numbers that lie in a line of the cache
constexpr int64_t kPart = 64;  // channels whose sums stay in registers
constexpr int64_t kSums = 32;  // and outputs of a product

struct Line {
  int64_t first, step;

  int64_t number(int64_t size) const { return (size - first + step - 1) / step; }
};

// Positions that are read of a row or column, as in `gate.sample_grid`.
Line line(int64_t size, int64_t grid) {
  const int64_t step = (size + grid - 1) / grid;
  return {(size - 1) % step / 2, step};
}

// y += x W for W of (inputs, outputs), whose rows are `stride` apart.
void add_product(const float* x, const float* w, int64_t inputs, int64_t outputs, int64_t stride,
                 float* y) {
  for (; outputs >= kSums; outputs -= kSums, w += kSums, y += kSums) {
    float sums[kSums] = {};
    for (int64_t i = 0; i < inputs; ++i)
#pragma omp simd
      for (int64_t o = 0; o < kSums; ++o) sums[o] += x[i] * w[i * stride + o];
    for (int64_t o = 0; o < kSums; ++o) y[o] += sums[o];
  }
  for (int64_t i = 0; i < inputs; ++i)
    for (int64_t o = 0; o < outputs; ++o) y[o] += x[i] * w[i * stride + o];
}

// Add up channels of positions, and what they change by from frame to frame.
void add_up(const std::vector<const float*>& reads, int64_t frames, int64_t channels, bool moving,
            float* mean, float* motion) {
  const int64_t number = static_cast<int64_t>(reads.size());
  for (int64_t i = -kAhead; i < number; ++i) {
    if (i + kAhead < number)
      for (int64_t k = 0; k < channels; k += kLine) __builtin_prefetch(reads[i + kAhead] + k);
    if (i < 0) continue;
    const float* p = reads[i];
#pragma omp simd
    for (int64_t k = 0; k < channels; ++k) mean[k] += p[k];
    if (!moving || i % frames == 0) continue;
    const float* before = reads[i - 1];
#pragma omp simd
    for (int64_t k = 0; k < channels; ++k) motion[k] += std::fabs(p[k] - before[k]);
  }
}

}  // namespace

Gate::Gate(at::Tensor first, at::Tensor shift, at::Tensor second, at::Tensor beta, bool motion,
           int64_t grid)
    : first_(first.contiguous()),
      shift_(shift.contiguous()),
      second_(second.contiguous()),
      beta_(beta.contiguous()),
      motion_(motion),
      grid_(grid) {}

at::Tensor Gate::weigh(const at::Tensor& input, int64_t segments) const {
  const Clips clips = clips_of(input, segments);
  const float* x = input.const_data_ptr<float>();
  TORCH_CHECK(first_.size(0) == clips.channels * (motion_ ? 2 : 1), "a gate for ",
              first_.size(0) / (motion_ ? 2 : 1), " channels got ", clips.channels);
  at::Tensor weights = at::empty({clips.number, 2, outputs() / 2}, first_.options());
  float* to = weights.mutable_data_ptr<float>();
  at::parallel_for(0, clips.number, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> hidden(first_.size(1));
    for (int64_t n = begin; n < end; ++n) {
      std::copy_n(shift_.const_data_ptr<float>(), hidden.size(), hidden.data());
      add_hidden(x + n * clips.clip(), clips, hidden.data());
      answer(hidden.data(), to + n * outputs());
    }
  });
  return weights;
}

void Gate::add_hidden(const float* x, const Clips& clips, float* hidden) const {
  const Line down = line(clips.rows, grid_), across = line(clips.columns, grid_);
  std::vector<const float*> reads;  // of each position all frames
  for (int64_t r = down.first; r < clips.rows; r += down.step)
    for (int64_t c = across.first; c < clips.columns; c += across.step)
      for (int64_t t = 0; t < clips.frames; ++t)
        reads.push_back(x + t * clips.frame() + (r * clips.columns + c) * clips.channels);
  const int64_t positions = down.number(clips.rows) * across.number(clips.columns);
  const int64_t differences = std::max<int64_t>(positions * (clips.frames - 1), 1);
  const int64_t width = first_.size(1);
  const float* weight = first_.const_data_ptr<float>();
  const float* of_motion = weight + clips.channels * width;
  for (int64_t from = 0; from < clips.channels; from += kPart) {
    const int64_t channels = std::min(kPart, clips.channels - from);
    float mean[kPart] = {}, motion[kPart] = {};
    if (channels == kPart)  // of a known number, so that they stay in registers
      add_up(reads, clips.frames, kPart, motion_, mean, motion);
    else
      add_up(reads, clips.frames, channels, motion_, mean, motion);
    for (const float*& p : reads) p += channels;
    for (int64_t k = 0; k < channels; ++k) {
      mean[k] /= static_cast<float>(positions * clips.frames);
      motion[k] /= static_cast<float>(differences);
    }
    add_product(mean, weight + from * width, channels, width, width, hidden);
    if (motion_) add_product(motion, of_motion + from * width, channels, width, width, hidden);
  }
}

void Gate::answer(float* hidden, float* weights) const {
  const int64_t width = first_.size(1);
  for (int64_t h = 0; h < width; ++h) hidden[h] = std::tanh(hidden[h]);
  std::copy_n(beta_.const_data_ptr<float>(), outputs(), weights);
  add_product(hidden, second_.const_data_ptr<float>(), width, outputs(), outputs(), weights);
  for (int64_t o = 0; o < outputs(); ++o) weights[o] = std::tanh(weights[o]);
}

}  // namespace vared2
