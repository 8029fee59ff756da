// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "planned.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cstring>

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

}  // namespace

at::Tensor Plan::convolve(const at::Tensor& x, const Clips& clips, const std::vector<int64_t>& rows,
                          const Epilogue& epilogue) const {
  const bool lies = step == 1 && neighbours(rows);
  const at::Tensor maps =
      lies ? as_view(x, view, rows.front() * clips.clip())
           : as_view(gather(x, clips, rows, step), view, 0);
  torch::jit::Stack stack{maps};
  if (epilogue.residual != nullptr)
    stack.emplace_back(as_view(*epilogue.residual, convolved, 0));
  stack.insert(stack.end(), arguments.begin(), arguments.end());
  const c10::IValue after = epilogue.relu ? c10::IValue("relu") : c10::IValue();
  const c10::List<std::optional<at::Scalar>> none;
  if (epilogue.residual == nullptr) {
    torch::jit::push(stack, epilogue.relu ? "relu" : "none", none, "");
    return call("", stack);
  }
  torch::jit::push(stack, "add", at::Scalar(1.0), after, none, "");
  return call("binary", stack);
}

}  // namespace vared2
