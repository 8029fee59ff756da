// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
// What `executors/cpu` calls.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/autocast_mode.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include "blocks.h"
#include "clips.h"
#include "gate.h"
#include "layer.h"
#include "trained.h"

namespace py = pybind11;

namespace vared2 {

namespace {

using Sizes = std::vector<int64_t>;
using Geometry = std::pair<Sizes, Sizes>;  // size and stride

// Whether there is compiled code for clips, as things are.
bool serves(const at::Tensor& x) {
  const c10::DispatchKeySet keys = x.key_set();
  const bool wrapped =
      keys.has(c10::DispatchKey::Python) || keys.has_any(at::kFunctorchWrappedTensors);
  return !wrapped && lies_dense(x) && !c10::GradMode::is_enabled() &&
         !at::autocast::is_autocast_enabled(at::kCPU) && !torch::jit::tracer::isTracing();
}

// Blocks as far as there is compiled code for them.
Executed execute_blocks(const std::vector<Block>& blocks, const at::Tensor& x,
                        const std::optional<at::Tensor>& residual) {
  Executed found;
  found.y = found.entered = x;
  if (!serves(x) || (residual && !serves(*residual))) return found;
  py::gil_scoped_release released;
  return execute(blocks, x, residual);
}

std::shared_ptr<Layer> make_layer(bool dynamic, std::vector<int64_t> kept, int64_t temporal,
                                  std::vector<at::Tensor> tables, InUse in_use,
                                  std::array<int64_t, 2> costs, at::Tensor weight,
                                  std::optional<at::Tensor> bias, std::array<int64_t, 3> stride,
                                  std::array<int64_t, 3> padding, std::array<int64_t, 3> dilation,
                                  int64_t segments) {
  const auto size = weight.sizes();
  const Window window{{size[2], size[3], size[4]}, stride, padding, dilation};
  return std::make_shared<Layer>(dynamic, Factors{std::move(kept), temporal, std::move(tables)},
                                 std::move(in_use), Costs{costs[0], costs[1]},
                                 Kernels{std::move(weight), std::move(bias)}, window, segments);
}

void add_plan(Layer& layer, const PlanKey& key, int64_t step, const Geometry& view,
              const at::Tensor& kernels, const std::optional<at::Tensor>& bias,
              const std::array<Sizes, 3>& sizes, int64_t groups, const Geometry& convolved) {
  torch::jit::Stack arguments{kernels, bias};
  for (const Sizes& each : sizes) arguments.emplace_back(each);
  arguments.emplace_back(groups);
  layer.add_plan(key, step, {view.first, view.second}, std::move(arguments),
                 {convolved.first, convolved.second});
}

}  // namespace

}  // namespace vared2

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace vared2;
  using py::arg;
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  py::register_exception<NotFinite>(m, "NotFinite", PyExc_FloatingPointError);
  m.def("serves", &serves);
  m.def("lies_dense", &lies_dense);
  m.def("can_tile", &Layer::can_tile);
  m.def("execute", &execute_blocks);
  py::class_<Blended>(m, "Mixed")
      .def(py::init<std::vector<int64_t>, std::vector<int64_t>, std::vector<int64_t>, int64_t>(),
           arg("kept"), arg("channel"), arg("temporal"), arg("frames"));
  m.def("blend", &blend, without_gil);
  m.def("blend_backward", &blend_backward, without_gil);
  py::class_<Gate, std::shared_ptr<Gate>>(m, "Gate")
      .def(py::init<at::Tensor, at::Tensor, at::Tensor, at::Tensor, bool, int64_t>(), arg("first"),
           arg("shift"), arg("second"), arg("beta"), arg("motion"), arg("grid"))
      .def("weigh", &Gate::weigh, without_gil);
  py::class_<Layer, std::shared_ptr<Layer>>(m, "Layer")
      .def(py::init(&make_layer), arg("dynamic"), arg("kept"), arg("temporal"), arg("tables"),
           arg("in_use"), arg("costs"), arg("weight"), arg("bias"), arg("stride"), arg("padding"),
           arg("dilation"), arg("segments"))
      .def("tensors", &Layer::tensors)
      .def("add_plan", &add_plan, arg("key"), arg("step"), arg("view"), arg("kernels"),
           arg("bias"), arg("sizes"), arg("groups"), arg("convolved"));
  py::class_<Step>(m, "Step")
      .def(py::init<std::shared_ptr<Layer>, std::shared_ptr<Gate>, float, bool>(), arg("layer"),
           arg("gate"), arg("floor"), arg("relu"))
      .def_readwrite("forced", &Step::forced)
      .def_readwrite("weights", &Step::weights);
  py::class_<Block>(m, "Block")
      .def(py::init<std::vector<Step>, std::vector<Step>, Step, bool>(), arg("first"),
           arg("beside"), arg("last"), arg("adds"));
  py::class_<Executed>(m, "Executed")
      .def_readonly("blocks", &Executed::blocks)
      .def_readonly("y", &Executed::y)
      .def_readonly("entered", &Executed::entered)
      .def_readonly("charges", &Executed::charges)
      .def_property_readonly("missing", [](const Executed& found) -> py::object {
        if (!found.missing) return py::none();
        return py::tuple(py::cast(*found.missing));
      });
}
