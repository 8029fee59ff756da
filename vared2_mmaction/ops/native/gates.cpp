// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "gates.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace vared2 {

namespace {

constexpr int64_t kAhead = 6;  // reads that are under way: they are pages apart
constexpr int64_t kLine = 16;  // numbers that lie in a line of the cache

struct Line {
  int64_t first, step;

  int64_t number(int64_t size) const { return (size - first + step - 1) / step; }
};

// Positions that are read of a row or column, as in `gate._line`.
Line line(int64_t size, int64_t grid) {
  const int64_t step = (size + grid - 1) / grid;
  return {(size - 1) % step / 2, step};
}

// y += x W for W of (inputs, outputs): the inner loop runs over outputs, which lie side by side.
void add_product(const float* x, const float* w, int64_t inputs, int64_t outputs, float* y) {
  for (int64_t i = 0; i < inputs; ++i, w += outputs) {
    const float factor = x[i];
#pragma omp simd
    for (int64_t o = 0; o < outputs; ++o) y[o] += factor * w[o];
  }
}

}  // namespace

Gates::Gates(at::Tensor first, at::Tensor shift, at::Tensor second, at::Tensor beta, bool motion,
             int64_t grid)
    : first_(first.contiguous()),
      shift_(shift.contiguous()),
      second_(second.contiguous()),
      beta_(beta.contiguous()),
      motion_(motion),
      grid_(grid) {}

at::Tensor Gates::weigh(const at::Tensor& input, int64_t segments) const {
  const Clips clips = clips_of(input, segments);
  const float* x = input.const_data_ptr<float>();
  TORCH_CHECK(first_.size(0) == clips.channels * (motion_ ? 2 : 1), "a gate for ",
              first_.size(0) / (motion_ ? 2 : 1), " channels got ", clips.channels);
  at::Tensor weights = at::empty({clips.number, layers(), 2, outputs() / 2}, first_.options());
  float* to = weights.mutable_data_ptr<float>();
  at::parallel_for(0, clips.number, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> described(2 * clips.channels), hidden(first_.size(1));
    for (int64_t n = begin; n < end; ++n) {
      describe(x + n * clips.clip(), clips, described.data());
      std::copy_n(shift_.const_data_ptr<float>(), hidden.size(), hidden.data());
      add_product(described.data(), first_.const_data_ptr<float>(), first_.size(0), first_.size(1),
                  hidden.data());
      answer(hidden.data(), to + n * layers() * outputs());
    }
  });
  return weights;
}

void Gates::describe(const float* x, const Clips& clips, float* mean) const {
  const int64_t channels = clips.channels;
  float* motion = mean + channels;
  const Line down = line(clips.rows, grid_), across = line(clips.columns, grid_);
  std::fill_n(mean, channels, 0.0f);
  std::fill_n(motion, channels, 0.0f);
  std::vector<const float*> reads;  // of each position all frames
  for (int64_t r = down.first; r < clips.rows; r += down.step)
    for (int64_t c = across.first; c < clips.columns; c += across.step)
      for (int64_t t = 0; t < clips.frames; ++t)
        reads.push_back(x + t * clips.frame() + (r * clips.columns + c) * clips.channels);
  const int64_t number = static_cast<int64_t>(reads.size());
  for (int64_t i = -kAhead; i < number; ++i) {
    if (i + kAhead < number)
      for (int64_t k = 0; k < channels; k += kLine) __builtin_prefetch(reads[i + kAhead] + k);
    if (i < 0) continue;
    const float* p = reads[i];
#pragma omp simd
    for (int64_t k = 0; k < channels; ++k) mean[k] += p[k];
    if (!motion_ || i % clips.frames == 0) continue;
    const float* before = reads[i - 1];
#pragma omp simd
    for (int64_t k = 0; k < channels; ++k) motion[k] += std::fabs(p[k] - before[k]);
  }
  const int64_t positions = down.number(clips.rows) * across.number(clips.columns);
  const int64_t differences = std::max<int64_t>(positions * (clips.frames - 1), 1);
  for (int64_t k = 0; k < channels; ++k) {
    mean[k] /= static_cast<float>(positions * clips.frames);
    motion[k] /= static_cast<float>(differences);
  }
}

void Gates::answer(float* hidden, float* weights) const {
  const int64_t width = first_.size(1), each = width / layers();
  for (int64_t h = 0; h < width; ++h) hidden[h] = std::tanh(hidden[h]);
  std::copy_n(beta_.const_data_ptr<float>(), layers() * outputs(), weights);
  const float* second = second_.const_data_ptr<float>();
  for (int64_t l = 0; l < layers(); ++l)
    add_product(hidden + l * each, second + l * each * outputs(), each, outputs(),
                weights + l * outputs());
  for (int64_t o = 0; o < layers() * outputs(); ++o) weights[o] = std::tanh(weights[o]);
}

}  // namespace vared2
