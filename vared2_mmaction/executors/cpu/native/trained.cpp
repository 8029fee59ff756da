// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "trained.h"

#include "blend.h"
#include "clips.h"

namespace vared2 {

namespace {

// The recipe of clip n; shifts may be null.
Recipe recipe(const at::Tensor& scales, const at::Tensor* shifts, int64_t n, const Blended& of) {
  Recipe made(of.kept, of.channel, of.temporal);
  const int64_t phases = made.phases(), channels = of.kept.front();
  const float* scale = scales.const_data_ptr<float>() + n * scales.stride(0);
  for (size_t a = 0; a < of.channel.size(); ++a)
    for (size_t b = 0; b < of.temporal.size(); ++b)
      for (int64_t phase = 0; phase < phases; ++phase, scale += channels)
        made.add(phase, a, b, 1.0f, scale);
  if (shifts != nullptr)
    std::copy_n(shifts->const_data_ptr<float>() + n * phases * channels, phases * channels,
                made.shift(0));
  return made;
}

Clips output(const Clips& computed, const Blended& of) {
  return {computed.number, of.frames, computed.rows, computed.columns, of.kept.front()};
}

}  // namespace

at::Tensor blend(const at::Tensor& computed, const at::Tensor& scales, const at::Tensor& shifts,
                 const Blended& of) {
  const Clips in = clips_of(computed, 1), out = output(in, of);
  // No view of other memory: what follows may write over the output of an autograd function.
  const at::Tensor y = at::empty({out.number, out.channels, out.frames, out.rows, out.columns},
                                 computed.options().memory_format(at::MemoryFormat::ChannelsLast3d));
  for (int64_t n = 0; n < in.number; ++n)
    recipe(scales, &shifts, n, of)
        .write(computed.const_data_ptr<float>() + n * in.clip(), out.frames, out.area(), nullptr,
               false, y.mutable_data_ptr<float>() + n * out.clip());
  return y;
}

std::array<at::Tensor, 3> blend_backward(const at::Tensor& gradient, const at::Tensor& computed,
                                         const at::Tensor& scales, const Blended& of) {
  const Clips in = clips_of(computed, 1), out = output(in, of);
  const int64_t phases = scales.size(3);
  const at::Tensor of_computed = at::empty({in.elements()}, computed.options());
  const at::Tensor of_scales = at::zeros(scales.sizes(), scales.options());
  const at::Tensor of_shifts = at::zeros({in.number, phases, out.channels}, scales.options());
  for (int64_t n = 0; n < in.number; ++n)
    recipe(scales, nullptr, n, of)
        .differentiate(gradient.const_data_ptr<float>() + n * out.clip(),
                       computed.const_data_ptr<float>() + n * in.clip(), out.frames, out.area(),
                       of_computed.mutable_data_ptr<float>() + n * in.clip(),
                       of_scales.mutable_data_ptr<float>() + n * of_scales.stride(0),
                       of_shifts.mutable_data_ptr<float>() + n * of_shifts.stride(0));
  return {as_clips(of_computed, in, 5), of_scales, of_shifts};
}

}  // namespace vared2
