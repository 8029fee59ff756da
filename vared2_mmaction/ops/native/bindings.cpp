// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// What `ops/compiled.py` calls.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/autocast_mode.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <tuple>

#include "chain.h"
#include "clips.h"
#include "gate.h"
#include "layer.h"
#include "trained.h"

namespace py = pybind11;

namespace vared2 {

namespace {

using Sizes = std::vector<int64_t>;

// Whether there is compiled code for clips, as things are.
bool serves(const at::Tensor& x) {
  const c10::DispatchKeySet keys = x.key_set();
  const bool wrapped =
      keys.has(c10::DispatchKey::Python) || keys.has_any(at::kFunctorchWrappedTensors);
  return !wrapped && lies_dense(x) && !c10::GradMode::is_enabled() &&
         !at::autocast::is_autocast_enabled(at::kCPU) && !torch::jit::tracer::isTracing();
}

bool serves(const at::Tensor& x, const std::optional<at::Tensor>& residual) {
  return serves(x) && (!residual || serves(*residual));
}

// Output, the key of the plan that is missing, or None where there is no compiled code.
py::object modulate(const Layer& layer, const at::Tensor& x, const std::vector<Weights>& weights,
                    const std::optional<at::Tensor>& residual, bool relu, bool skip) {
  if (!serves(x, residual)) return py::none();
  std::variant<at::Tensor, PlanKey> found;
  {
    py::gil_scoped_release released;
    const Epilogue epilogue{residual ? &*residual : nullptr, relu};
    found = layer.execute(x, layer.decide(weights), epilogue, skip);
  }
  if (auto* key = std::get_if<PlanKey>(&found)) return py::tuple(py::cast(*key));
  return py::cast(std::get<at::Tensor>(found));
}

// What Python tells of a step, and of a block.
using ToldStep = std::tuple<const Layer*, const Gate*, float,
                            std::optional<std::vector<std::array<int64_t, 2>>>, bool, bool>;
using ToldBlock = std::tuple<std::vector<ToldStep>, std::vector<ToldStep>, ToldStep, bool>;

Step step_of(const ToldStep& told) {
  const auto& [layer, gate, floor, forced, relu, skip] = told;
  return {layer, gate, floor, forced, relu, skip};
}

std::vector<Step> steps_of(const std::vector<ToldStep>& told) {
  std::vector<Step> steps;
  for (const ToldStep& each : told) steps.push_back(step_of(each));
  return steps;
}

// How many blocks were executed, output of the last step, input of the next block, what each step
// charges, and the key of the plan that the next step is missing.
py::tuple execute_blocks(const std::vector<ToldBlock>& told, const at::Tensor& x,
                         const std::optional<at::Tensor>& residual) {
  Executed found;
  found.y = found.entered = x;
  if (serves(x, residual)) {
    std::vector<Block> blocks;
    for (const auto& [first, beside, last, adds] : told)
      blocks.push_back({steps_of(first), steps_of(beside), step_of(last), adds});
    py::gil_scoped_release released;
    found = execute(blocks, x, residual);
  }
  py::object missing = found.missing ? py::object(py::tuple(py::cast(*found.missing))) : py::none();
  return py::make_tuple(found.blocks, found.y, found.entered, found.charges, std::move(missing));
}

void add_plan(Layer& layer, const PlanKey& key, int64_t step, const Sizes& size,
              const Sizes& stride, const at::Tensor& kernels,
              const std::optional<at::Tensor>& bias, const std::array<Sizes, 3>& sizes,
              int64_t groups, const Sizes& convolved_size, const Sizes& convolved_stride) {
  torch::jit::Stack arguments{kernels, bias};
  for (const Sizes& each : sizes) arguments.emplace_back(each);
  arguments.emplace_back(groups);
  layer.add_plan(key, step, {size, stride}, std::move(arguments),
                 {convolved_size, convolved_stride});
}

}  // namespace

}  // namespace vared2

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace vared2;
  m.def("serves", py::overload_cast<const at::Tensor&>(&serves));
  m.def("blend", [](const at::Tensor& computed, const at::Tensor& scales, const at::Tensor& shifts,
                    std::vector<int64_t> kept, std::vector<int64_t> channel,
                    std::vector<int64_t> temporal, int64_t frames) {
    py::gil_scoped_release released;
    return blend(computed, scales, shifts, {kept, channel, temporal, frames});
  });
  m.def("blend_backward",
        [](const at::Tensor& gradient, const at::Tensor& computed, const at::Tensor& scales,
           std::vector<int64_t> kept, std::vector<int64_t> channel, std::vector<int64_t> temporal,
           int64_t frames) {
          py::gil_scoped_release released;
          return blend_backward(gradient, computed, scales, {kept, channel, temporal, frames});
        });
  m.def("execute", &execute_blocks);
  py::register_exception<NotFinite>(m, "NotFinite", PyExc_FloatingPointError);
  m.def("lies_dense", &lies_dense);
  m.def("can_tile", &Layer::can_tile);
  py::class_<Gate>(m, "Gate")
      .def(py::init<at::Tensor, at::Tensor, at::Tensor, at::Tensor, bool, int64_t>())
      .def(
          "weigh", [](const Gate& gate, const at::Tensor& x) { return gate.weigh(x, 1); },
          py::call_guard<py::gil_scoped_release>());
  py::class_<Layer>(m, "Layer")
      .def(py::init([](std::vector<int64_t> kept, int64_t temporal, std::vector<at::Tensor> tables,
                       std::array<int64_t, 4> costs,
                       std::pair<at::Tensor, std::optional<at::Tensor>> kernels,
                       std::array<std::array<int64_t, 3>, 3> sizes, int64_t segments) {
        const Kernels own{kernels.first, kernels.second};
        const auto size = own.weight.sizes();
        const Window window{{size[2], size[3], size[4]}, sizes[0], sizes[1], sizes[2]};
        return std::make_unique<Layer>(Factors{std::move(kept), temporal, std::move(tables)},
                                       Costs{costs[0], costs[1], costs[2], costs[3]}, own, window,
                                       segments);
      }))
      .def("tensors", &Layer::tensors)
      .def("add_plan", &add_plan)
      .def("modulate", &modulate);
}
