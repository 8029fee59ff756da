// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "blend.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <mutex>
#include <set>

namespace vared2 {

namespace {

constexpr int64_t kGrain = 1 << 14;      // elements that are worth a thread
constexpr int64_t kPositions = 1 << 13;  // elements of a frame that are differentiated at once

// Where a range of output channels begins: behind every copy of the channels that an option keeps.
std::vector<int64_t> cuts(const std::vector<int64_t>& kept, const std::vector<int64_t>& options) {
  const int64_t channels = kept.front();
  std::set<int64_t> found{0, channels};
  for (int64_t i : options)
    for (int64_t c = kept[i]; c < channels; c += kept[i]) found.insert(c);
  return {found.begin(), found.end()};
}

template <bool kResidual, bool kRelu>
inline float followed(float y, const float* residual, int64_t c) {
  if (kResidual) y += residual[c];
  if (kRelu) y = y < 0 ? 0 : y;  // NaN stays
  return y;
}

template <bool kResidual, bool kRelu>
void follow(const float* computed, int64_t elements, const float* residual, float* out) {
  at::parallel_for(0, elements, kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t e = begin; e < end; ++e)
      out[e] = followed<kResidual, kRelu>(computed[e], residual, e);
  });
}

}  // namespace

Recipe::Recipe(const std::vector<int64_t>& kept, const std::vector<int64_t>& channel,
               const std::vector<int64_t>& temporal)
    : temporal_(temporal),
      channels_(kept.front()),
      computed_channels_(kept[channel.front()]),
      step_(int64_t{1} << temporal.front()),
      phases_(int64_t{1} << temporal.back()),
      shift_(phases_.size() * channels_) {
  const std::vector<int64_t> bounds = cuts(kept, channel);
  for (int64_t phase = 0; phase < phases(); ++phase) {
    for (size_t s = 0; s + 1 < bounds.size(); ++s) {
      Segment segment{bounds[s], bounds[s + 1], {}};
      for (size_t a = 0; a < channel.size(); ++a) {
        for (size_t b = 0; b < temporal.size(); ++b) {
          const int64_t before = back(phase, b), from = segment.begin % kept[channel[a]];
          auto same = [&](const Source& s) { return s.back == before && s.channel == from; };
          auto& sources = segment.sources;
          auto source = std::find_if(sources.begin(), sources.end(), same);
          if (source == sources.end())
            source = sources.insert(
                source, {before, from, std::vector<float>(segment.end - segment.begin), {}});
          source->pairs.emplace_back(a, b);
        }
      }
      phases_[phase].push_back(std::move(segment));
    }
  }
}

std::vector<int64_t> Recipe::offsets(const std::vector<Segment>& segments,
                                     int64_t frame_step) const {
  std::vector<int64_t> found;
  for (const Segment& segment : segments)
    for (const Source& source : segment.sources)
      found.push_back(source.channel - source.back / step_ * frame_step);
  return found;
}

void Recipe::add(int64_t phase, size_t a, size_t b, float share, const float* scale) {
  const std::pair<size_t, size_t> pair{a, b};
  for (Segment& segment : phases_[phase])
    for (Source& source : segment.sources)
      if (std::find(source.pairs.begin(), source.pairs.end(), pair) != source.pairs.end())
        for (int64_t c = segment.begin; c < segment.end; ++c)
          source.scale[c - segment.begin] += share * scale[c];
}

// One sum of a segment: up to four sources are read in one loop, with what follows.
template <bool kResidual, bool kRelu, int kSources>
inline void write_sum(const float* const* w, const float* const* z, const float* b, const float* r,
                      int64_t length, float* y) {
  const float *w0 = w[0], *z0 = z[0];
  const float *w1 = w[kSources > 1], *z1 = z[kSources > 1];
  const float *w2 = w[kSources > 2 ? 2 : 0], *z2 = z[kSources > 2 ? 2 : 0];
  const float *w3 = w[kSources > 3 ? 3 : 0], *z3 = z[kSources > 3 ? 3 : 0];
#pragma omp simd
  for (int64_t c = 0; c < length; ++c) {
    float sum = w0[c] * z0[c] + b[c];
    if (kSources > 1) sum += w1[c] * z1[c];
    if (kSources > 2) sum += w2[c] * z2[c];
    if (kSources > 3) sum += w3[c] * z3[c];
    y[c] = followed<kResidual, kRelu>(sum, r, c);
  }
}

template <bool kResidual, bool kRelu>
inline void write_sums(size_t number, const float* const* w, const float* const* z, const float* b,
                       const float* r, int64_t length, float* y) {
  switch (number) {
    case 1:
      return write_sum<kResidual, kRelu, 1>(w, z, b, r, length, y);
    case 2:
      return write_sum<kResidual, kRelu, 2>(w, z, b, r, length, y);
    case 3:
      return write_sum<kResidual, kRelu, 3>(w, z, b, r, length, y);
    case 4:
      return write_sum<kResidual, kRelu, 4>(w, z, b, r, length, y);
    default:  // the residual first: it may be what is overwritten
      write_sum<kResidual, false, 4>(w, z, b, r, length, y);
      return write_sums<false, kRelu>(number - 4, w + 4, z + 4, y, nullptr, length, y);
  }
}

template <bool kResidual, bool kRelu>
void Recipe::write_positions(const std::vector<Segment>& segments, const float* shift,
                             const float* computed, int64_t frame_step, int64_t positions,
                             const float* residual, float* out) const {
  constexpr size_t kMost = 16;  // sources of a segment: four options of each dimension
  const std::vector<int64_t> all = offsets(segments, frame_step);
  for (int64_t p = 0; p < positions; ++p) {
    const int64_t* at = all.data();
    for (const Segment& segment : segments) {
      const float *w[kMost], *z[kMost];
      const size_t number = segment.sources.size();
      for (size_t s = 0; s < number; ++s, ++at) {
        w[s] = segment.sources[s].scale.data();
        z[s] = computed + *at;
      }
      write_sums<kResidual, kRelu>(number, w, z, shift + segment.begin,
                                   kResidual ? residual + segment.begin : nullptr,
                                   segment.end - segment.begin, out + segment.begin);
    }
    computed += computed_channels_;
    out += channels_;
    if (kResidual) residual += channels_;
  }
}

Recipe::WritePositions Recipe::writing(bool adds, bool relu) {
  if (adds && relu) return &Recipe::write_positions<true, true>;
  if (adds) return &Recipe::write_positions<true, false>;
  return relu ? &Recipe::write_positions<false, true> : &Recipe::write_positions<false, false>;
}

bool Recipe::local() const {
  for (const auto& segments : phases_)
    for (const Segment& segment : segments)
      for (const Source& source : segment.sources)
        if (source.back >= step_) return false;
  return true;
}

void Recipe::write_made(const float* computed, int64_t frame, int64_t frames, int64_t area,
                        int64_t positions, const float* residual, bool relu, float* out) const {
  const WritePositions write = writing(residual != nullptr, relu);
  for (int64_t t = frame * step_; t < std::min(frames, (frame + 1) * step_); ++t) {
    const int64_t phase = t % phases(), at = t * area * channels_;
    (this->*write)(phases_[phase], shift_.data() + phase * channels_, computed, 0, positions,
                   residual == nullptr ? nullptr : residual + at, out + at);
  }
}

void Recipe::write(const float* computed, int64_t frames, int64_t area, const float* residual,
                   bool relu, float* out) const {
  const int64_t frame_step = area * computed_channels_;
  const int64_t period = phases_.size();
  const WritePositions write = writing(residual != nullptr, relu);
  const int64_t grain = std::max<int64_t>(kGrain / channels_, 1);
  at::parallel_for(0, frames * area, grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end;) {  // frame by frame
      const int64_t t = p / area, positions = std::min(end, (t + 1) * area) - p;
      // The computed frame at or before this one; sources are whole steps before it.
      const float* z = computed + t / step_ * frame_step + p % area * computed_channels_;
      (this->*write)(phases_[t % period], shift_.data() + t % period * channels_, z, frame_step,
                     positions, residual == nullptr ? nullptr : residual + p * channels_,
                     out + p * channels_);
      p += positions;
    }
  });
}

void Recipe::differentiate_positions(const std::vector<Segment>& segments, const float* gradient,
                                     const float* computed, int64_t frame_step, int64_t positions,
                                     float* of_computed, float* sums) const {
  const std::vector<int64_t> all = offsets(segments, frame_step);
  for (int64_t p = 0; p < positions; ++p) {
    const int64_t* at = all.data();
    float* sum = sums;
    for (const Segment& segment : segments) {
      const int64_t length = segment.end - segment.begin;
      const float* g = gradient + segment.begin;
#pragma omp simd
      for (int64_t c = 0; c < length; ++c) sum[c] += g[c];
      sum += length;
      for (const Source& source : segment.sources) {
        const float *w = source.scale.data(), *z = computed + *at;
        float* of_z = of_computed + *at++;
#pragma omp simd
        for (int64_t c = 0; c < length; ++c) {
          of_z[c] += w[c] * g[c];
          sum[c] += z[c] * g[c];
        }
        sum += length;
      }
    }
    gradient += channels_;
    computed += computed_channels_;
    of_computed += computed_channels_;
  }
}

void Recipe::differentiate(const float* gradient, const float* computed, int64_t frames,
                           int64_t area, float* of_computed, float* of_scales,
                           float* of_shifts) const {
  const int64_t frame_step = area * computed_channels_, computed_frames = (frames - 1) / step_ + 1;
  std::vector<int64_t> starts{0};  // of the sums of each phase
  for (const auto& segments : phases_) {
    int64_t length = channels_;
    for (const Segment& segment : segments)
      length += (segment.end - segment.begin) * static_cast<int64_t>(segment.sources.size());
    starts.push_back(starts.back() + length);
  }
  std::vector<float> total(starts.back());
  std::mutex adding;
  // Positions are few enough that their frames stay in the cache while all phases read them.
  const int64_t each = std::max<int64_t>(kPositions / channels_, 1);
  at::parallel_for(0, (area - 1) / each + 1, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(total.size());
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * each, positions = std::min(each, area - first);
      for (int64_t t = 0; t < computed_frames; ++t)
        std::fill_n(of_computed + t * frame_step + first * computed_channels_,
                    positions * computed_channels_, 0.0f);
      for (int64_t t = 0; t < frames; ++t) {
        const int64_t at = t / step_ * frame_step + first * computed_channels_;
        differentiate_positions(phases_[t % phases()], gradient + (t * area + first) * channels_,
                                computed + at, frame_step, positions, of_computed + at,
                                sums.data() + starts[t % phases()]);
      }
    }
    const std::lock_guard<std::mutex> guard(adding);
    for (size_t i = 0; i < total.size(); ++i) total[i] += sums[i];
  });
  const float* sum = total.data();
  for (int64_t phase = 0; phase < phases(); ++phase) {
    for (const Segment& segment : phases_[phase]) {
      const int64_t length = segment.end - segment.begin;
      for (int64_t c = 0; c < length; ++c)
        of_shifts[phase * channels_ + segment.begin + c] += sum[c];
      sum += length;
      for (const Source& source : segment.sources) {
        for (const auto& [a, b] : source.pairs) {
          float* of = of_scales + ((a * temporal_.size() + b) * phases() + phase) * channels_;
          for (int64_t c = 0; c < length; ++c) of[segment.begin + c] += sum[c];
        }
        sum += length;
      }
    }
  }
}

void finish(const float* computed, int64_t elements, const float* residual, bool relu, float* out) {
  const auto write = residual == nullptr
                         ? (relu ? &follow<false, true> : &follow<false, false>)
                         : (relu ? &follow<true, true> : &follow<true, false>);
  write(computed, elements, residual, out);
}

}  // namespace vared2
