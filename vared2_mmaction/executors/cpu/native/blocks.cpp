// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "blocks.h"

#include <utility>

namespace vared2 {

namespace {

// Executes the steps of one block, and notes what they charge.
class Execution {
 public:
  explicit Execution(Executed& found) : found_(found) {}

  // The output of a step; nothing if it was not executed.
  std::optional<at::Tensor> run(const Step& step, const at::Tensor& x, const Epilogue& epilogue) {
    std::vector<Policy> policies;
    try {
      policies = decide(step, x);
    } catch (const NotFinite&) {
      if (found_.charges.empty()) throw;
      return std::nullopt;
    }
    auto made = step.layer->execute(x, policies, epilogue);
    if (const auto* key = std::get_if<PlanKey>(&made)) {
      found_.missing = *key;
      return std::nullopt;
    }
    found_.charges.push_back(step.layer->charge(x, policies));
    return std::get<at::Tensor>(std::move(made));
  }

 private:
  static std::vector<Policy> decide(const Step& step, const at::Tensor& x) {
    const Layer& layer = *step.layer;
    if (step.weights) return layer.decide(*step.weights);
    if (auto policies = layer.without_choice(x)) return *std::move(policies);
    if (step.forced) return layer.decide(layer.force(*step.forced, x));
    TORCH_CHECK(step.gate != nullptr, "a layer with a choice needs a gate");
    return layer.decide(layer.open(step.gate->weigh(x, layer.segments()), step.floor, x));
  }

  Executed& found_;
};

// Whether a block was executed as a whole.
bool execute(const Block& block, const std::optional<at::Tensor>& given, Executed& found) {
  Execution execution(found);
  const at::Tensor& x = found.entered;
  for (const Step& step : block.first) {
    auto y = execution.run(step, found.y, {nullptr, step.relu});
    if (!y) return false;
    found.y = *std::move(y);
  }
  at::Tensor residual = given.value_or(x);
  for (const Step& step : block.beside) {
    auto r = execution.run(step, residual, {nullptr, step.relu});
    if (!r) return false;
    residual = *std::move(r);
  }
  // Nobody else sees what was made here, but the last step may read it.
  const bool own = !block.beside.empty() || found.blocks > 0;
  const bool overwrites = own && !found.y.is_alias_of(residual);
  const Step& last = block.last;
  auto y = execution.run(last, found.y,
                         {block.adds ? &residual : nullptr, last.relu, block.adds && overwrites});
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
