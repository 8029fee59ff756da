// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "blocks.h"

#include <utility>

namespace vared2 {

namespace {

std::vector<Policy> decide(const Step& step, const at::Tensor& x) {
  const Layer& layer = *step.layer;
  if (step.weights) return layer.decide(*step.weights);
  if (auto policies = layer.without_choice(x)) return *std::move(policies);
  if (step.forced) return layer.decide(layer.force(*step.forced, x));
  TORCH_CHECK(step.gate != nullptr, "a layer with a choice needs a gate");
  return layer.decide(layer.open(step.gate->weigh(x, layer.segments()), step.floor, x));
}

// The output of a step, whose charges are noted; nothing if it was not executed.
std::optional<at::Tensor> run(const Step& step, const at::Tensor& x, const Epilogue& epilogue,
                              Executed& found) {
  std::vector<Policy> policies;
  try {
    policies = decide(step, x);
  } catch (const NotFinite&) {
    if (found.charges.empty()) throw;
    return std::nullopt;
  }
  auto made = step.layer->execute(x, policies, epilogue);
  if (const auto* key = std::get_if<PlanKey>(&made)) {
    found.missing = *key;
    return std::nullopt;
  }
  found.charges.push_back(step.layer->charge(x, policies));
  return std::get<at::Tensor>(std::move(made));
}

// Whether a block was executed as a whole.
bool execute(const Block& block, const std::optional<at::Tensor>& given, Executed& found) {
  const at::Tensor& x = found.entered;
  for (const Step& step : block.first) {
    auto y = run(step, found.y, {nullptr, step.relu}, found);
    if (!y) return false;
    found.y = *std::move(y);
  }
  at::Tensor residual = given.value_or(x);
  for (const Step& step : block.beside) {
    auto r = run(step, residual, {nullptr, step.relu}, found);
    if (!r) return false;
    residual = *std::move(r);
  }
  // Nobody else sees what was made here, but the last step may read it.
  const bool own = !block.beside.empty() || found.blocks > 0;
  const bool overwrites = own && !found.y.is_alias_of(residual);
  const Step& last = block.last;
  auto y = run(last, found.y,
               {block.adds ? &residual : nullptr, last.relu, block.adds && overwrites}, found);
  if (!y) return false;
  found.y = *std::move(y);
  return true;
}

}  // namespace

Executed execute(const std::vector<Block>& blocks, const at::Tensor& x,
                 const std::optional<at::Tensor>& residual) {
  Executed found;
  found.y = found.entered = x;
  for (const Block& block : blocks) {
    if (!execute(block, found.blocks == 0 ? residual : std::nullopt, found)) break;
    found.entered = found.y;
    ++found.blocks;
  }
  return found;
}

}  // namespace vared2
