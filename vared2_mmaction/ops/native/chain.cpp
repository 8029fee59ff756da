// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "chain.h"

namespace vared2 {

namespace {

std::vector<Policy> decide(const Step& step, const at::Tensor& x) {
  const Layer& layer = *step.layer;
  if (!step.decides()) {
    const Weights whole{{{1.0f}, {1.0f}}};
    return layer.decide(std::vector<Weights>(clips_of(x, layer.segments()).number, whole));
  }
  const auto* own = std::get_if<const Gates*>(&step.gates);
  const at::Tensor answered = own != nullptr
                                  ? (*own)->weigh(x, layer.segments())
                                  : std::get<at::Tensor>(step.gates).to(at::kFloat).contiguous();
  std::vector<Weights> weights = layer.open(answered, step.gate, step.floor, x);
  if (step.forced) layer.force(*step.forced, weights);
  return layer.decide(weights);
}

}  // namespace

Executed execute(const std::vector<Step>& steps, const at::Tensor& x, const at::Tensor* residual) {
  Executed found{0, x, {}, {}};
  for (const Step& step : steps) {
    const bool last = &step == &steps.back();
    std::vector<Policy> policies;
    try {
      policies = decide(step, found.y);
    } catch (const NotFinite&) {
      if (found.steps == 0) throw;
      break;
    }
    auto made =
        step.layer->execute(found.y, policies, {last ? residual : nullptr, step.relu}, step.skip);
    if (const auto* key = std::get_if<PlanKey>(&made)) {
      found.missing = *key;
      break;
    }
    found.charges.emplace_back();
    if (step.decides()) found.charges.back() = step.layer->charge(found.y, policies);
    found.y = std::get<at::Tensor>(std::move(made));
    ++found.steps;
  }
  return found;
}

}  // namespace vared2
