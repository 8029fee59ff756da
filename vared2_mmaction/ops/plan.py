# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What a layer did with its inputs, so that it does the same with the next in fewer steps."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import packed
from .epilogue import NOTHING, Epilogue
from .packed import PackedCall, PackedConv2d, Version, is_served, version_of


class Plan(NamedTuple):
    """How clips of one geometry are convolved."""

    weight: Tensor
    """What was packed; as long as it is held, no other has its id."""
    bias: Tensor | None
    version: Version
    view: tuple[tuple[int, ...], tuple[int, ...]]
    """Size and stride of what is convolved, which begins where the input does."""
    call: PackedCall
    result: tuple[tuple[int, ...], tuple[int, ...]]
    """Size and stride of the result."""
    convolved: tuple[tuple[int, ...], tuple[int, ...]]
    """Size and stride of the result as it is convolved."""

    def serves(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether the parameters are as they were; plans are found by their weight."""
        return self.bias is bias and self.version == version_of(weight)

    def dense(self, x: Tensor) -> bool:
        """Whether the view of an input is dense, so that oneDNN does not copy it."""
        view = x.as_strided(*self.view, x.storage_offset())
        return view.is_contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, epilogue: Epilogue) -> Tensor:
        maps, residual = x.as_strided(*self.view, x.storage_offset()), epilogue.residual
        if residual is None:
            return self.call(maps, epilogue).as_strided(*self.result)
        if _geometry(residual) != self.result:
            return epilogue(self.call(maps).as_strided(*self.result))
        added = residual.as_strided(*self.convolved, residual.storage_offset())
        return self.call(maps, epilogue._replace(residual=added)).as_strided(*self.result)


class Plans:
    """Convolutions of one layer, for inference: one view, one call of oneDNN with packed kernels,
    one view.

    What :func:`~vared2_mmaction.ops.forms.convolve` finds out about an input depends on nothing but
    its shape and strides. The first of its kind is convolved as ever, and watched; a small map
    takes less time than the Python of those steps.
    """

    def __init__(self) -> None:
        self._conv2d = PackedConv2d()
        self._plans: dict[Hashable, Plan | None] = {}

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        part: Hashable,
        general: Callable[..., Tensor],
        epilogue: Epilogue = NOTHING,
    ) -> Tensor:
        """Convolve clips.

        Args:
            x: Clips, (N, C, T, H, W).
            weight: Kernels of the layer.
            bias: Of the layer, or None.
            part: What of the layer is asked for.
            general: Convolves x, with the 2-D convolution that it is given, or ``F.conv2d``.
            epilogue: What follows.
        """
        if not is_served(x, weight):
            return epilogue(general())
        key = x.shape, x.stride(), part, id(weight)
        if key in self._plans:
            plan = self._plans[key]
            if plan is None:
                return epilogue(general(self._conv2d))
            if plan.serves(weight, bias):
                return plan(x, epilogue)
        elif len(self._plans) >= packed.MAX_SHAPES:
            return epilogue(general(self._conv2d))
        y, self._plans[key] = self.watch(x, weight, bias, general)
        return epilogue(y)

    def tensors(self) -> list[Tensor]:
        """Packed kernels, which take memory beside the layer's own."""
        return self._conv2d.tensors()

    def watch(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, general: Callable[..., Tensor]
    ) -> tuple[Tensor, Plan | None]:
        """Convolve clips, and tell how.

        Args:
            x: See :meth:`convolve`, as for the others.
            weight: Kernels.
            bias: Bias, or None.
            general: Convolves x.

        Returns:
            The result, and the plan; None where it was not by one view, one call and one view.
        """
        seen: list[tuple[Tensor, PackedCall | None, Tensor]] = []

        def conv2d(maps: Tensor, *args: Any) -> Tensor:
            call = self._conv2d.prepare(maps, *args)
            result = F.conv2d(maps, *args) if call is None else call(maps)
            seen.append((maps, call, result))
            return result

        y = general(conv2d)
        if len(seen) != 1:
            return y, None
        maps, call, result = seen[0]
        if call is None or not _is_view(maps, x) or not _is_view(y, result):
            return y, None
        if result.shape[2:] == (1, 1) and not adds_to_elements():
            return y, None
        geometries = (_geometry(y), _geometry(result))
        return y, Plan(weight, bias, version_of(weight), _geometry(maps), call, *geometries)

    def __deepcopy__(self, memo: Any) -> 'Plans':
        return Plans()  # packed tensors cannot be copied

    def __reduce__(self) -> tuple:
        return Plans, ()


def _geometry(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(x.shape), x.stride()


@functools.cache
def adds_to_elements() -> bool:
    """Whether PyTorch can add a residual to maps of one element; 2.8 cannot."""
    x = torch.zeros(1, 2, 1, 1).to(memory_format=torch.channels_last)
    call = PackedCall(x.expand(2, 2, 1, 1), None, ([0, 0], [1, 1], [1, 1]), 1)
    try:
        call(x, Epilogue(x))
    except RuntimeError:
        return False
    return True


def _is_view(x: Tensor, base: Tensor) -> bool:
    """Whether tensors begin at the same place of the same memory."""
    return x.data_ptr() == base.data_ptr()
