// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "layer.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

namespace vared2 {

namespace {

constexpr int64_t kFewestInputs = 16;    // channels that are worth a product
constexpr int64_t kSmallArea = 64;       // positions of a frame whose kernels are what is read
constexpr int64_t kSmallMaps = 1 << 20;  // elements of an output that stays in the cache

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

// An output, and what is added to it, which may be null.
struct Target {
  float* written;
  const float* added;
  Clips clips;
  bool relu;

  float* at(int64_t offset) const { return written + offset; }
  const float* residual(int64_t offset) const { return added == nullptr ? nullptr : added + offset; }
};

using Recipes = std::vector<std::shared_ptr<const Recipe>>;

bool local(const Recipes& recipes) {
  return std::all_of(recipes.begin(), recipes.end(),
                     [](const auto& recipe) { return recipe == nullptr || recipe->local(); });
}

// Write some clips from all that was computed of them.
void write(const at::Tensor& computed, const std::vector<int64_t>& rows, const Recipes& recipes,
           const Target& target) {
  const Clips& out = target.clips;
  const float* z = computed.const_data_ptr<float>();
  const int64_t each = computed.numel() / static_cast<int64_t>(rows.size());
  for (size_t i = 0; i < rows.size(); ++i, z += each) {
    const int64_t at = rows[i] * out.clip();
    if (recipes[i] == nullptr)
      finish(z, each, target.residual(at), target.relu, target.at(at));
    else
      recipes[i]->write(z, out.frames, out.area(), target.residual(at), target.relu, target.at(at));
  }
}

// Writes some clips from tiles, one after the other.
TiledConvolution::Receive writing(const std::vector<int64_t>& rows, const Recipes& recipes,
                                  const Target& target) {
  return [&](const float* z, int64_t clip, int64_t frame, int64_t first, int64_t positions) {
    const Clips& out = target.clips;
    const Recipe* recipe = recipes[clip].get();
    int64_t at = rows[clip] * out.clip() + first * out.channels;
    if (recipe == nullptr) {
      at += frame * out.frame();
      finish(z, positions * out.channels, target.residual(at), target.relu, target.at(at));
    } else {
      recipe->write_made(z, frame, out.frames, out.area(), positions, target.residual(at),
                         target.relu, target.at(at));
    }
  };
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

Layer::Layer(Factors factors, double saturation, const Kernels& kernels, const Kernels& whole,
             const Window& window, int64_t segments)
    : factors_(std::move(factors)),
      saturation_(saturation),
      inputs_(kernels.weight.size(1)),
      window_(window),
      segments_(segments),
      tells_whole_(!whole.weight.is_alias_of(kernels.weight)),
      tiles_{kernels},
      whole_tiles_{whole} {}

bool Layer::can_tile(int64_t inputs) {
  return inputs >= kFewestInputs && TiledConvolution::available();
}

const TiledConvolution& Layer::tiles(bool whole) const {
  Tiles& of = whole && tells_whole_ ? whole_tiles_ : tiles_;
  std::call_once(of.once, [&] {
    of.made = std::make_unique<const TiledConvolution>(of.kernels.weight, of.kernels.bias, window_);
  });
  return *of.made;
}

std::vector<at::Tensor> Layer::tensors() const {
  std::vector<at::Tensor> found;
  for (const Tiles* of : {&tiles_, &whole_tiles_})
    if (of->made != nullptr) found.push_back(of->made->kernels());
  return found;
}

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
  const int64_t frames = window_.output(clips, factors_.channels()).frames, width = answered.size(3);
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

bool Layer::by_tiles(const Clips& out, const std::vector<Policy>& policies, bool skip,
                     bool adds) const {
  // Modes, such as those that count operations, see those of PyTorch.
  if (!can_tile(inputs_) || c10::impl::TorchDispatchModeTLS::any_modes_set()) return false;
  auto all = [&](bool (Policy::*is)() const) {
    return std::all_of(policies.begin(), policies.end(), [&](const Policy& of) { return (of.*is)(); });
  };
  if ((skip && !all(&Policy::everything)) || !window_.in_2d()) return true;
  const auto& [kt, kh, kw] = window_.kernel;
  if (kh * kw > 1) return out.area() <= kSmallArea;
  return (adds && all(&Policy::whole)) || kt > 1 || out.elements() <= kSmallMaps;
}

std::vector<Layer::Group> Layer::divide(const Clips& clips, const std::vector<Policy>& policies,
                                        bool tiled) const {
  // oneDNN needs clips side by side: gathering one copies it; a run of its own reads all kernels
  // again.
  const bool runs =
      !tiled && clips.clip() > factors_.channels() * inputs_ * window_.taps();
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

std::vector<std::shared_ptr<const Recipe>> Layer::recipes(const Group& group,
                                                          const std::vector<Policy>& policies,
                                                          bool skip) const {
  std::vector<std::shared_ptr<const Recipe>> found(group.rows.size());
  for (size_t i = 0; i < found.size() && !group.whole; ++i) {
    const Policy& policy = policies[group.rows[i]];
    const bool as_before = i > 0 && policy == policies[group.rows[i - 1]];
    found[i] = as_before ? found[i - 1] : std::make_shared<const Recipe>(recipe(policy, skip));
  }
  return found;
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
                           const Epilogue& epilogue) const {
  const Plan& plan = *group.plan;
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
  const Clips clips = clips_of(x, segments_), out = window_.output(clips, factors_.channels());
  TORCH_CHECK(static_cast<int64_t>(weights.size()) == clips.number, "expected the weights of ",
              clips.number, " clips, got ", weights.size());
  TORCH_CHECK(clips.channels == inputs_, "expected ", inputs_, " channels, got ", clips.channels);
  const at::Tensor* residual = epilogue.residual;
  TORCH_CHECK(residual == nullptr || clips_of(*residual, segments_) == out,
              "a residual of another shape");
  std::vector<Policy> policies;
  for (const Weights& v : weights) policies.push_back({share(v[0]), share(v[1])});
  const bool tiled = by_tiles(out, policies, skip, residual != nullptr);
  std::vector<Group> groups = divide(clips, policies, tiled);
  if (!tiled) {
    const std::shared_lock lock(planning_);
    for (Group& group : groups) {
      const PlanKey wanted = key(clips, group, policies[group.rows.front()], skip);
      const auto plan = plans_.find(wanted);
      if (plan == plans_.end()) return wanted;
      group.plan = &plan->second;
    }
  }
  if (!tiled && groups.size() == 1 && groups[0].whole)
    return as_clips(convolve(x, clips, groups[0], epilogue), out, x.dim());
  const at::Tensor y = at::empty({out.elements()}, x.options());
  const Target target{y.mutable_data_ptr<float>(),
                      residual == nullptr ? nullptr : residual->const_data_ptr<float>(), out,
                      epilogue.relu};
  for (const Group& group : groups) {
    const auto made = recipes(group, policies, skip);
    if (!tiled) {
      write(convolve(x, clips, group, {}), group.rows, made, target);
      continue;
    }
    const float* from = x.const_data_ptr<float>();
    const TiledConvolution& tiles = this->tiles(group.whole);
    const Policy& policy = policies[group.rows.front()];
    const Part part{group.rows, factors_.kept[skip ? policy.channel.dearest() : 0],
                    int64_t{1} << (skip ? policy.temporal.dearest() : 0)};
    if (local(made) && tiles.occupies_threads(clips, part))
      tiles.convolve(from, clips, part, writing(group.rows, made, target));
    else
      write(tiles.convolve(from, clips, part), group.rows, made, target);
  }
  return as_clips(y, out, x.dim());
}

}  // namespace vared2
