// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "layer.h"

#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

namespace vared2 {

namespace {

constexpr int64_t kFewestInputs = 16;    // channels that are worth a product
constexpr int64_t kSmallArea = 64;       // positions of a frame whose kernels are what is read
constexpr int64_t kSmallMaps = 1 << 21;  // elements of maps that stay in the cache

// Weights of a dimension with `number` options of which a gate answered some; those not in use have
// none. See `gate.open_options` and `conv.of_options`.
std::vector<float> opened(const float* answered, int64_t number, const std::vector<int64_t>& in_use,
                          float floor) {
  if (number == 1) return {1.0f};
  std::vector<float> all(number), used(number);
  bool any = false;
  for (int64_t i = 0; i < number; ++i) {
    all[i] = answered[i] <= 0 ? 0 : answered[i];  // NaN stays
    any = any || all[i] != 0;
  }
  if (!any) all.back() = floor;
  any = false;
  for (int64_t i : in_use) {
    used[i] = all[i];
    any = any || all[i] != 0;
  }
  if (!any) used[in_use.back()] = *std::max_element(all.begin(), all.end());
  return used;
}

// Options that are on, and their weights divided by their sum.
Shares share(const std::vector<float>& weights) {
  Shares found;
  float sum = 0;
  for (size_t option = 0; option < weights.size(); ++option) {
    if (!(weights[option] > 0)) continue;
    sum += weights[option];
    found.options.push_back(option);
    found.shares.push_back(weights[option]);
  }
  TORCH_CHECK(!found.options.empty(), "all options of a clip are off");
  for (float& part : found.shares) part /= sum;
  return found;
}

// Whether every frame is made from the computed frame at or before it alone.
bool local(const Recipes& recipes) {
  return std::all_of(recipes.begin(), recipes.end(),
                     [](const auto& recipe) { return recipe == nullptr || recipe->local(); });
}

// The output of a layer while its clips are written.
class Output {
 public:
  Output(const Clips& clips, const at::TensorOptions& options, const Epilogue& epilogue)
      : clips_(clips),
        written_(epilogue.overwrites ? epilogue.residual->as_strided({clips.elements()}, {1})
                                     : at::empty({clips.elements()}, options)),
        to_(written_.mutable_data_ptr<float>()),
        added_(epilogue.residual == nullptr ? nullptr : epilogue.residual->const_data_ptr<float>()),
        relu_(epilogue.relu) {}

  // Write some clips from all that was computed of them.
  void write(const at::Tensor& computed, const std::vector<int64_t>& rows, const Recipes& recipes) {
    const float* z = computed.const_data_ptr<float>();
    const int64_t each = computed.numel() / static_cast<int64_t>(rows.size());
    for (size_t i = 0; i < rows.size(); ++i, z += each) {
      const int64_t at = rows[i] * clips_.clip();
      if (recipes[i] == nullptr)
        finish(z, each, residual(at), relu_, to_ + at);
      else
        recipes[i]->write(z, clips_.frames, clips_.area(), residual(at), relu_, to_ + at);
    }
  }

  // Writes some clips tile by tile, if what makes them is local; the arguments must outlive it.
  TiledConvolution::Receive writer(const std::vector<int64_t>& rows, const Recipes& recipes) {
    return [&, this](const float* z, int64_t clip, int64_t frame, int64_t first, int64_t positions) {
      const Recipe* recipe = recipes[clip].get();
      int64_t at = rows[clip] * clips_.clip() + first * clips_.channels;
      if (recipe == nullptr) {
        at += frame * clips_.frame();
        finish(z, positions * clips_.channels, residual(at), relu_, to_ + at);
      } else {
        recipe->write_made(z, frame, clips_.frames, clips_.area(), positions, residual(at), relu_,
                           to_ + at);
      }
    };
  }

  // In so many dimensions.
  at::Tensor as_tensor(int64_t dimensions) const { return as_clips(written_, clips_, dimensions); }

 private:
  const float* residual(int64_t offset) const {
    return added_ == nullptr ? nullptr : added_ + offset;
  }

  Clips clips_;
  at::Tensor written_;
  float* to_;
  const float* added_;
  bool relu_;
};

}  // namespace

Layer::Layer(bool dynamic, Factors factors, InUse in_use, const Costs& costs,
             const Kernels& kernels, const Window& window, int64_t segments)
    : dynamic_(dynamic),
      factors_(std::move(factors)),
      in_use_(std::move(in_use)),
      costs_(costs),
      inputs_(kernels.weight.size(1)),
      window_(window),
      segments_(segments),
      tiles_{kernels} {}

bool Layer::can_tile(int64_t inputs) {
  return inputs >= kFewestInputs && TiledConvolution::available();
}

const TiledConvolution& Layer::tiles() const {
  std::call_once(tiles_.once, [&] {
    const auto& [weight, bias] = tiles_.kernels;
    tiles_.made = std::make_unique<const TiledConvolution>(weight, bias, window_);
  });
  return *tiles_.made;
}

std::vector<at::Tensor> Layer::tensors() const {
  if (tiles_.made == nullptr) return {};
  return {tiles_.made->kernels()};
}

void Layer::add_plan(const PlanKey& key, int64_t step, View view, torch::jit::Stack arguments,
                     View convolved) {
  const std::unique_lock lock(planning_);
  plans_.emplace(key, Plan{step, std::move(view), std::move(arguments), std::move(convolved)});
}

int64_t Layer::temporal_options(const at::Tensor& x) const {
  const int64_t frames = window_.output(clips_of(x, segments_), factors_.channels()).frames;
  int64_t number = 1;
  while (number < factors_.temporal && int64_t{1} << number <= frames) ++number;
  return number;
}

InUse Layer::available(const at::Tensor& x) const {
  const int64_t number = temporal_options(x);
  InUse found{in_use_[0], {}};
  for (int64_t option : in_use_[1])
    if (option < number) found[1].push_back(option);
  if (found[1].empty()) found[1].push_back(number - 1);
  return found;
}

std::vector<Weights> Layer::open(const at::Tensor& answered, float floor,
                                 const at::Tensor& x) const {
  const InUse in_use = available(x);
  const int64_t width = answered.size(2), temporal = temporal_options(x);
  std::vector<Weights> weights;
  for (int64_t n = 0; n < answered.size(0); ++n) {
    const float* v = answered.const_data_ptr<float>() + n * 2 * width;
    weights.push_back({opened(v, factors_.kept.size(), in_use[0], floor),
                       opened(v + width, temporal, in_use[1], floor)});
  }
  return weights;
}

std::vector<Weights> Layer::force(const std::vector<std::array<int64_t, 2>>& options,
                                  const at::Tensor& x) const {
  const InUse in_use = available(x);
  std::vector<Weights> weights(clips_of(x, segments_).number);
  for (size_t n = 0; n < weights.size(); ++n) {
    for (size_t dimension = 0; dimension < 2; ++dimension) {
      const std::vector<int64_t>& used = in_use[dimension];
      const int64_t option =
          std::min(options[options.size() == 1 ? 0 : n][dimension], used.back());
      TORCH_CHECK(std::find(used.begin(), used.end(), option) != used.end(), "option ", option,
                  " is out of use");
      weights[n][dimension].assign(used.back() + 1, 0.0f);
      weights[n][dimension][option] = 1.0f;
    }
  }
  return weights;
}

std::optional<std::vector<Policy>> Layer::without_choice(const at::Tensor& x) const {
  const InUse in_use = available(x);
  if (in_use[0].size() + in_use[1].size() > 2) return std::nullopt;
  const Policy only{{in_use[0], {1.0f}}, {in_use[1], {1.0f}}};
  return std::vector<Policy>(clips_of(x, segments_).number, only);
}

std::vector<Policy> Layer::decide(const std::vector<Weights>& weights) const {
  std::vector<Policy> policies;
  for (const Weights& clip : weights) {
    for (const std::vector<float>& dimension : clip)
      for (float v : dimension)
        if (!std::isfinite(v)) throw NotFinite();
    policies.push_back({share(clip[0]), share(clip[1])});
  }
  return policies;
}

Charges Layer::charge(const at::Tensor& x, const std::vector<Policy>& policies) const {
  const Clips out = window_.output(clips_of(x, segments_), factors_.channels());
  const int64_t element = out.area() * costs_.element;  // of a channel of a frame
  const int64_t whole = out.channels * out.frames * element;
  const int64_t number = static_cast<int64_t>(policies.size());
  if (!dynamic_) return whole * number;
  const InUse in_use = available(x);
  const int64_t gate = in_use[0].size() + in_use[1].size() > 2 ? costs_.gate : 0;
  auto frames_of = [&](int64_t option) { return ((out.frames - 1) >> option) + 1; };
  const at::Tensor charges = at::empty({number, 5}, at::kDouble);
  double* to = charges.mutable_data_ptr<double>();
  for (const auto& [channel, temporal] : policies) {
    const int64_t frames = frames_of(temporal.dearest());
    int64_t rebuilding = 0;  // multiply-adds for a position: one for each element
    for (int64_t i : channel.options) rebuilding += (out.channels - factors_.kept[i]) * frames;
    for (int64_t j : temporal.options) rebuilding += (out.frames - frames_of(j)) * out.channels;
    for (int64_t column : {factors_.kept[channel.dearest()] * frames * element, whole,
                           rebuilding * out.area() + gate, channel.dearest(),
                           temporal.dearest()})
      *to++ = static_cast<double>(column);
  }
  return charges;
}

bool Layer::by_tiles(const Clips& in, const Clips& out, const std::vector<Policy>& policies,
                     bool adds) const {
  // Modes, such as those that count operations, see those of PyTorch.
  if (!can_tile(inputs_) || c10::impl::TorchDispatchModeTLS::any_modes_set()) return false;
  auto all = [&](bool (Policy::*is)() const) {
    return std::all_of(policies.begin(), policies.end(),
                       [&](const Policy& policy) { return (policy.*is)(); });
  };
  if (!all(&Policy::everything) || !window_.in_2d()) return true;
  // All is computed. oneDNN convolves large maps as fast, and does not add a residual as fast.
  if (window_.kernel[1] * window_.kernel[2] > 1) return out.area() <= kSmallArea;
  const bool small = std::max(in.elements(), out.elements()) <= kSmallMaps;
  return small || (adds && all(&Policy::whole));
}

std::vector<Layer::Group> Layer::divide(const Clips& clips, const std::vector<Policy>& policies,
                                        bool tiled) const {
  // oneDNN needs clips side by side: gathering one copies it; a run of its own reads all kernels
  // again.
  const bool runs = !tiled && clips.clip() > factors_.channels() * inputs_ * window_.taps();
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

Recipes Layer::recipes(const Group& group, const std::vector<Policy>& policies) const {
  Recipes found(group.rows.size());
  for (size_t i = 0; i < found.size() && !group.whole; ++i) {
    const Policy& policy = policies[group.rows[i]];
    const bool as_before = i > 0 && policy == policies[group.rows[i - 1]];
    found[i] = as_before ? found[i - 1] : std::make_shared<const Recipe>(recipe(policy));
  }
  return found;
}

Recipe Layer::recipe(const Policy& policy) const {
  const Shares &channel = policy.channel, &temporal = policy.temporal;
  Recipe made(factors_.kept, channel.options, temporal.options);
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

std::variant<at::Tensor, PlanKey> Layer::execute(const at::Tensor& x,
                                                 const std::vector<Policy>& policies,
                                                 const Epilogue& epilogue) const {
  at::AutoDispatchBelowADInplaceOrView without_autograd;
  const Clips clips = clips_of(x, segments_), out = window_.output(clips, factors_.channels());
  TORCH_CHECK(static_cast<int64_t>(policies.size()) == clips.number, "expected the weights of ",
              clips.number, " clips, got ", policies.size());
  TORCH_CHECK(clips.channels == inputs_, "expected ", inputs_, " channels, got ", clips.channels);
  TORCH_CHECK(std::min({out.frames, out.rows, out.columns}) > 0, "clips of ", clips.frames, " x ",
              clips.rows, " x ", clips.columns, " are smaller than the kernels");
  const at::Tensor* residual = epilogue.residual;
  TORCH_CHECK(residual == nullptr || clips_of(*residual, segments_) == out,
              "a residual of another shape");
  const bool tiled = by_tiles(clips, out, policies, residual != nullptr);
  std::vector<Group> groups = divide(clips, policies, tiled);
  if (!tiled) {
    const std::shared_lock lock(planning_);
    for (Group& group : groups) {
      const Policy& policy = policies[group.rows.front()];
      const PlanKey wanted{static_cast<int64_t>(group.rows.size()), clips.frames, clips.rows,
                           clips.columns, policy.channel.dearest(), policy.temporal.dearest()};
      const auto plan = plans_.find(wanted);
      if (plan == plans_.end()) return wanted;
      group.plan = &plan->second;
    }
  }
  if (!tiled && groups.size() == 1 && groups[0].whole)
    return as_clips(groups[0].plan->convolve(x, clips, groups[0].rows, epilogue), out, x.dim());
  Output y(out, x.options(), epilogue);
  for (const Group& group : groups) {
    const Recipes made = recipes(group, policies);
    if (!tiled) {
      y.write(group.plan->convolve(x, clips, group.rows, {}), group.rows, made);
      continue;
    }
    const float* from = x.const_data_ptr<float>();
    const TiledConvolution& tiles = this->tiles();
    const Policy& policy = policies[group.rows.front()];
    const Part part{group.rows, factors_.kept[policy.channel.dearest()],
                    int64_t{1} << policy.temporal.dearest()};
    if (local(made) && tiles.occupies_threads(clips, part))
      tiles.convolve(from, clips, part, y.writer(group.rows, made));
    else
      y.write(tiles.convolve(from, clips, part), group.rows, made);
  }
  return y.as_tensor(x.dim());
}

}  // namespace vared2
