// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "layer.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

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
  at::parallel_for(0, number, std::max<int64_t>((1 << 15) / frame, 1), [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f)
      std::memcpy(out + f * frame, in + rows[f / frames] * clips.clip() + f % frames * step * frame,
                  frame * sizeof(float));
  });
  return copied;
}

// Weights of a dimension with `number` options of which a gate answered some, as `open_on_host`.
std::vector<float> opened(const float* answered, int64_t number, float floor) {
  if (number == 1) return {1.0f};
  std::vector<float> weights(number);
  bool any = false;
  for (int64_t i = 0; i < number; ++i) {
    weights[i] = answered[i] <= 0 ? 0 : answered[i];  // NaN stays
    any = any || weights[i] != 0;
  }
  if (!any) weights.back() = floor;
  return weights;
}

}  // namespace

bool Layer::Policy::operator==(const Policy& other) const {
  return channel == other.channel && temporal == other.temporal;
}

bool Layer::Policy::together(const Policy& other) const {
  return channel.dearest() == other.channel.dearest() &&
         temporal.dearest() == other.temporal.dearest();
}

bool Layer::Policy::whole() const {
  return channel.single() && temporal.single() && channel.dearest() + temporal.dearest() == 0;
}

Layer::Layer(Factors factors, double saturation, int64_t inputs, std::array<int64_t, 3> kernel,
             std::array<int64_t, 3> stride, std::array<int64_t, 3> padding,
             std::array<int64_t, 3> dilation, int64_t segments)
    : factors_(std::move(factors)),
      saturation_(saturation),
      inputs_(inputs),
      kernel_(kernel),
      stride_(stride),
      padding_(padding),
      dilation_(dilation),
      segments_(segments) {}

void Layer::add_plan(const PlanKey& key, int64_t step, View view, torch::jit::Stack arguments,
                     View convolved) {
  const std::unique_lock lock(planning_);
  plans_.emplace(key, Plan{step, std::move(view), std::move(arguments), std::move(convolved)});
}

std::vector<Weights> Layer::open(const at::Tensor& answered, int64_t gate, float floor,
                                 const at::Tensor& x) const {
  const Clips clips = clips_of(x, segments_);
  TORCH_CHECK(answered.size(0) == clips.number, "gates answered for ", answered.size(0),
              " clips, a layer got ", clips.number);
  TORCH_CHECK(answered.is_contiguous());
  const int64_t frames = output(clips).frames, width = answered.size(3);
  int64_t temporal = 1;
  while (temporal < factors_.temporal && int64_t{1} << temporal <= frames) ++temporal;
  std::vector<Weights> weights;
  for (int64_t n = 0; n < clips.number; ++n) {
    const float* v = answered.const_data_ptr<float>() + (n * answered.size(1) + gate) * 2 * width;
    weights.push_back({opened(v, factors_.kept.size(), floor), opened(v + width, temporal, floor)});
  }
  return weights;
}

void Layer::force(const std::vector<std::array<int64_t, 2>>& options,
                  std::vector<Weights>& weights) const {
  for (size_t n = 0; n < weights.size(); ++n) {
    const std::array<int64_t, 2>& forced = options.size() == 1 ? options[0] : options[n];
    for (size_t dimension = 0; dimension < 2; ++dimension) {
      std::vector<float>& v = weights[n][dimension];
      const int64_t last = static_cast<int64_t>(v.size()) - 1;
      std::fill(v.begin(), v.end(), 0.0f);
      v[std::min(forced[dimension], last)] = 1.0f;
    }
  }
}

Shares Layer::share(const std::vector<float>& weights) const {
  Shares found;
  float left = 1, sum = 0;
  for (size_t option = 0; option < weights.size(); ++option) {
    const float v = weights[option];
    if (!(v > 0)) continue;
    const float part =
        std::isinf(saturation_) ? v : std::min(v / static_cast<float>(saturation_), 1.0f) * left;
    left -= part;
    sum += part;
    found.options.push_back(option);
    found.shares.push_back(part);
    if (v >= saturation_) break;
  }
  TORCH_CHECK(!found.options.empty(), "all options of a clip are off");
  for (float& part : found.shares) part /= sum;
  return found;
}

std::vector<Layer::Group> Layer::divide(const Clips& clips,
                                        const std::vector<Policy>& policies) const {
  // Gathering a clip copies it; a run of its own reads all kernels again.
  const int64_t kernels = factors_.channels() * inputs_ * kernel_[0] * kernel_[1] * kernel_[2];
  const bool runs = clips.clip() > kernels;
  std::vector<Group> groups;
  for (int64_t row = 0; row < clips.number; ++row) {
    auto fits = [&](const Group& group) {
      return policies[group.rows.front()].together(policies[row]);
    };
    auto group = runs ? (groups.empty() || !fits(groups.back()) ? groups.end() : groups.end() - 1)
                      : std::find_if(groups.begin(), groups.end(), fits);
    if (group == groups.end()) group = groups.insert(group, Group{});
    group->rows.push_back(row);
    group->whole = group->whole && policies[row].whole();
  }
  return groups;
}

PlanKey Layer::key(const Clips& clips, const Group& group, const Policy& policy,
                   bool skip) const {
  return {static_cast<int64_t>(group.rows.size()),
          clips.frames,
          clips.rows,
          clips.columns,
          skip ? policy.channel.dearest() : 0,
          skip ? policy.temporal.dearest() : 0,
          group.whole};
}

Clips Layer::output(const Clips& clips) const {
  const std::array<int64_t, 3> in{clips.frames, clips.rows, clips.columns};
  std::array<int64_t, 3> out;
  for (size_t d = 0; d < 3; ++d)
    out[d] = (in[d] + 2 * padding_[d] - dilation_[d] * (kernel_[d] - 1) - 1) / stride_[d] + 1;
  return {clips.number, out[0], out[1], out[2], factors_.channels()};
}

Recipe Layer::recipe(const Policy& policy, bool skip) const {
  const Shares &channel = policy.channel, &temporal = policy.temporal;
  Recipe made(factors_.kept, channel.options, temporal.options, skip);
  for (int64_t phase = 0; phase < made.phases(); ++phase) {
    for (size_t a = 0; a < channel.options.size(); ++a) {
      for (size_t b = 0; b < temporal.options.size(); ++b) {
        const int64_t i = channel.options[a], j = temporal.options[b], back = made.back(phase, b);
        const float share = channel.shares[a] * temporal.shares[b];
        const float* shift = factors_.shift(i, j, back);
        made.add(phase, a, b, share, factors_.scale(i, j, back));
        for (int64_t c = 0; c < factors_.channels(); ++c) made.shift(phase)[c] += share * shift[c];
      }
    }
  }
  return made;
}

at::Tensor Layer::convolve(const at::Tensor& x, const Clips& clips, const Group& group,
                           const Plan& plan, const Epilogue& epilogue) const {
  const bool lies = plan.step == 1 && neighbours(group.rows);
  const at::Tensor maps =
      lies ? as_view(x, plan.view, group.rows.front() * clips.clip())
           : as_view(gather(x, clips, group.rows, plan.step), plan.view, 0);
  torch::jit::Stack stack{maps};
  if (epilogue.residual != nullptr)
    stack.emplace_back(as_view(*epilogue.residual, plan.convolved, 0));
  stack.insert(stack.end(), plan.arguments.begin(), plan.arguments.end());
  const c10::IValue after = epilogue.relu ? c10::IValue("relu") : c10::IValue();
  const c10::List<std::optional<at::Scalar>> none;
  if (epilogue.residual == nullptr) {
    torch::jit::push(stack, epilogue.relu ? "relu" : "none", none, "");
    return call("", stack);
  }
  torch::jit::push(stack, "add", at::Scalar(1.0), after, none, "");
  return call("binary", stack);
}

std::variant<at::Tensor, PlanKey> Layer::execute(const at::Tensor& x,
                                                 const std::vector<Weights>& weights,
                                                 const Epilogue& epilogue, bool skip) const {
  at::AutoDispatchBelowADInplaceOrView without_autograd;
  const Clips clips = clips_of(x, segments_), out = output(clips);
  TORCH_CHECK(static_cast<int64_t>(weights.size()) == clips.number, "expected the weights of ",
              clips.number, " clips, got ", weights.size());
  TORCH_CHECK(clips.channels == inputs_, "expected ", inputs_, " channels, got ", clips.channels);
  const at::Tensor* residual = epilogue.residual;
  TORCH_CHECK(residual == nullptr || clips_of(*residual, segments_) == out,
              "a residual of another shape");
  std::vector<Policy> policies;
  for (const Weights& v : weights) policies.push_back({share(v[0]), share(v[1])});
  const std::vector<Group> groups = divide(clips, policies);
  std::vector<const Plan*> plans;
  {
    const std::shared_lock lock(planning_);
    for (const Group& group : groups) {
      const PlanKey wanted = key(clips, group, policies[group.rows.front()], skip);
      const auto plan = plans_.find(wanted);
      if (plan == plans_.end()) return wanted;
      plans.push_back(&plan->second);
    }
  }
  if (groups.size() == 1 && groups[0].whole)
    return as_clips(convolve(x, clips, groups[0], *plans[0], epilogue), out, x.dim());
  const at::Tensor y = at::empty({out.elements()}, x.options());
  float* written = y.mutable_data_ptr<float>();
  const float* added = residual == nullptr ? nullptr : residual->const_data_ptr<float>();
  for (size_t g = 0; g < groups.size(); ++g) {
    const Group& group = groups[g];
    const at::Tensor computed = convolve(x, clips, group, *plans[g], {});
    const float* z = computed.const_data_ptr<float>();
    const int64_t each = computed.numel() / static_cast<int64_t>(group.rows.size());
    std::optional<Recipe> blend;
    const Policy* of = nullptr;
    for (int64_t row : group.rows) {
      const float* own = added == nullptr ? nullptr : added + row * out.clip();
      float* target = written + row * out.clip();
      if (group.whole) {
        finish(z, each, own, epilogue.relu, target);
      } else {
        if (of == nullptr || !(policies[row] == *of)) {
          of = &policies[row];
          blend = recipe(*of, skip);
        }
        blend->write(z, out.frames, out.area(), own, epilogue.relu, target);
      }
      z += each;
    }
  }
  return as_clips(y, out, x.dim());
}

}  // namespace vared2
