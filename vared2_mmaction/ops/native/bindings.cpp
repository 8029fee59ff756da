// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// What `ops/compiled.py` calls.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/autocast_mode.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>

#include "clips.h"
#include "gates.h"
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

void check_finite(const std::vector<Weights>& weights) {
  for (const Weights& clip : weights)
    for (const std::vector<float>& dimension : clip)
      for (float v : dimension)
        if (!std::isfinite(v)) {
          PyErr_SetString(PyExc_FloatingPointError, "the weights of the gate are not finite");
          throw py::error_already_set();
        }
}

bool serves(const at::Tensor& x, const std::optional<at::Tensor>& residual) {
  return serves(x) && (!residual || serves(*residual));
}

// Output, or the key of the plan that is missing.
py::object execute(const Layer& layer, const at::Tensor& x, const std::vector<Weights>& weights,
                   const std::optional<at::Tensor>& residual, bool relu, bool skip) {
  std::variant<at::Tensor, PlanKey> found;
  {
    py::gil_scoped_release released;
    found = layer.execute(x, weights, {residual ? &*residual : nullptr, relu}, skip);
  }
  if (auto* key = std::get_if<PlanKey>(&found)) return py::tuple(py::cast(*key));
  return py::cast(std::get<at::Tensor>(found));
}

// Output, the key of the plan that is missing, or None where there is no compiled code.
py::object modulate(const Layer& layer, const at::Tensor& x, const std::vector<Weights>& weights,
                    const std::optional<at::Tensor>& residual, bool relu, bool skip) {
  if (!serves(x, residual)) return py::none();
  check_finite(weights);
  return execute(layer, x, weights, residual, relu, skip);
}

// What `modulate` returns, and the weights, which are forced or what gate number `gate` answers:
// one of `gates`, which see the same input, or of some that have answered.
py::tuple forward(const Layer& layer, const std::variant<const Gates*, at::Tensor>& gates,
                  int64_t gate, float floor, const at::Tensor& x,
                  const std::optional<std::vector<std::array<int64_t, 2>>>& forced,
                  const std::optional<at::Tensor>& residual, bool relu, bool skip) {
  if (!serves(x, residual)) return py::make_tuple(py::none(), py::none());
  const auto* asked = std::get_if<const Gates*>(&gates);
  const at::Tensor answered =
      asked ? (*asked)->weigh(x, layer.segments()) : std::get<1>(gates).to(at::kFloat).contiguous();
  std::vector<Weights> weights = layer.open(answered, gate, floor, x);
  if (forced) layer.force(*forced, weights);
  check_finite(weights);
  py::object y = execute(layer, x, weights, residual, relu, skip);
  return py::make_tuple(std::move(y), weights);
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
  m.def("lies_dense", &lies_dense);
  m.def("can_tile", &Layer::can_tile);
  py::class_<Gates>(m, "Gates")
      .def(py::init<at::Tensor, at::Tensor, at::Tensor, at::Tensor, bool, int64_t>())
      .def(
          "weigh", [](const Gates& gates, const at::Tensor& x) { return gates.weigh(x, 1); },
          py::call_guard<py::gil_scoped_release>());
  py::class_<Layer>(m, "Layer")
      .def(py::init([](std::vector<int64_t> kept, int64_t temporal, std::vector<at::Tensor> tables,
                       double saturation, std::pair<at::Tensor, std::optional<at::Tensor>> kernels,
                       std::pair<at::Tensor, std::optional<at::Tensor>> whole,
                       std::array<std::array<int64_t, 3>, 3> sizes, int64_t segments) {
        const Kernels own{kernels.first, kernels.second};
        const auto size = own.weight.sizes();
        const Window window{{size[2], size[3], size[4]}, sizes[0], sizes[1], sizes[2]};
        return std::make_unique<Layer>(Factors{std::move(kept), temporal, std::move(tables)},
                                       saturation, own, Kernels{whole.first, whole.second}, window,
                                       segments);
      }))
      .def("tensors", &Layer::tensors)
      .def("add_plan", &add_plan)
      .def("modulate", &modulate)
      .def("forward", &forward);
}
