// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "planned.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "blend.h"

namespace vared2 {

namespace {

at::Tensor call(const char* overload, torch::jit::Stack& stack) {
  c10::Dispatcher::singleton()
      .findSchemaOrThrow("mkldnn::_convolution_pointwise", overload)
      .callBoxed(stack);
  return stack[0].toTensor();
}

at::Tensor as_view(const at::Tensor& x, const View& view, int64_t offset) {
  return x.as_strided(view.size, view.stride, x.storage_offset() + offset);
}

bool neighbours(const std::vector<int64_t>& rows) {
  return rows.back() - rows.front() + 1 == static_cast<int64_t>(rows.size());
}

// Every step-th frame of some clips, copied together.
at::Tensor gather(const at::Tensor& x, const Clips& clips, const std::vector<int64_t>& rows,
                  int64_t step) {
  const int64_t frames = (clips.frames + step - 1) / step, frame = clips.frame();
  const int64_t number = static_cast<int64_t>(rows.size()) * frames;
  at::Tensor copied = at::empty({number * frame}, x.options());
  const float* in = x.const_data_ptr<float>();
  float* out = copied.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>((1 << 15) / frame, 1);
  at::parallel_for(0, number, grain, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f)
      std::memcpy(out + f * frame, in + rows[f / frames] * clips.clip() + f % frames * step * frame,
                  frame * sizeof(float));
  });
  return copied;
}

// Whether a tensor, dense in memory, holds neither NaN nor infinities.
bool is_finite(const float* x, int64_t elements) {
  const float sum = at::parallel_reduce(
      0, elements, 1 << 15, 0.0f,
      [&](int64_t begin, int64_t end, float found) {
#pragma omp simd reduction(+ : found)
        for (int64_t e = begin; e < end; ++e) found += 0.0f * x[e];  // NaN unless finite
        return found;
      },
      std::plus<float>());
  return sum == 0;
}

}  // namespace

at::Tensor Plan::convolve(const at::Tensor& x, const Clips& clips, const std::vector<int64_t>& rows,
                          const Epilogue& epilogue) const {
  const bool lies = step == 1 && neighbours(rows);
  const at::Tensor taken = lies ? x : gather(x, clips, rows, step);
  const int64_t offset = lies ? rows.front() * clips.clip() : 0;
  const at::Tensor* residual = epilogue.residual;
  // oneDNN's ReLU makes zero of NaN, which then nobody would see.
  const bool joined =
      epilogue.relu &&
      is_finite(taken.const_data_ptr<float>() + offset,
                lies ? static_cast<int64_t>(rows.size()) * clips.clip() : taken.numel()) &&
      (residual == nullptr || is_finite(residual->const_data_ptr<float>(), residual->numel()));
  torch::jit::Stack stack{as_view(taken, view, offset)};
  if (residual != nullptr) stack.emplace_back(as_view(*residual, convolved, 0));
  stack.insert(stack.end(), arguments.begin(), arguments.end());
  const c10::List<std::optional<at::Scalar>> none;
  if (residual == nullptr)
    torch::jit::push(stack, joined ? "relu" : "none", none, "");
  else
    torch::jit::push(stack, "add", at::Scalar(1.0), joined ? c10::IValue("relu") : c10::IValue(),
                     none, "");
  at::Tensor y = call(residual == nullptr ? "" : "binary", stack);
  if (epilogue.relu && !joined) {
    float* written = y.mutable_data_ptr<float>();
    finish(written, y.numel(), nullptr, true, written);
  }
  return y;
}

}  // namespace vared2
