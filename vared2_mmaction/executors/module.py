# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The module that takes the place of a convolution in an optimised network."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from ..ops import Decision, Options
from .base import BACKENDS, Charges, Executor, leaves_python
from .cpu.packed import PackedConvolution, packs
from .eager import Eager
from .records import is_dynamic, record_of


class ExecutedConv(nn.Module):
    """A convolution that an executor executes, dynamic or stock.

    Parameters and parts (``gate``, ``channel_options``, ``temporal_options``) are those of the
    convolution, under the same names. They are told to the executor once, and again when the module
    is moved or converted; nothing else may change them.

    Args:
        conv: A convolution with normalisation folded.
        name: Its name in the network.
    """

    _conv: Any
    layer_name: str
    forced: Tensor | None
    """Options, (N or 1, 2), that take the place of the gate's decision; of a dynamic layer."""
    decisions: tuple[Tensor | Decision, ...] | None
    """What a dynamic layer has decided since a backbone began to collect that, run by run."""
    macs: int | None
    """Multiply-adds of a stock convolution since a backbone began to collect them."""
    executor: Executor | None
    """None where the eager executor serves all inputs."""

    def __init__(self, conv: nn.Module, name: str = '') -> None:
        super().__init__()
        for key, parameter in conv._parameters.items():
            self.register_parameter(key, parameter)
        for key, child in conv.named_children():
            self.add_module(key, child)
        self.__dict__['_conv'] = conv  # no child: its parts are
        self.layer_name = getattr(conv, 'layer_name', name)
        self.forced = self.decisions = self.macs = None
        self.relu = False
        self.backend = ''
        self._prepare()
        self.train(conv.training)

    @property
    def is_dynamic(self) -> bool:
        """Whether the layer decides."""
        return is_dynamic(self._conv)

    @property
    def in_use(self) -> Options:
        """Options in use, of a dynamic layer."""
        return self._conv.in_use

    @property
    def num_options(self) -> tuple[int, int]:
        """Numbers of channel and temporal options, in use or not, of a dynamic layer."""
        return self._conv.num_options

    @property
    def executed_by(self) -> str:
        """Name of the executor."""
        return 'eager' if self.executor is None else self.backend

    def take_relu(self) -> None:
        """Apply the ReLU that follows from now on."""
        self.relu = True

    def execute_by(self, backend: str) -> None:
        """Choose the executor: the name of one of :data:`~.base.BACKENDS`, or ``eager``."""
        self.backend = backend
        self._prepare()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve; shapes are those of the stock convolution.

        Args:
            x: Input, (N, C, T, H, W) or (N T, C, H, W).
            residual: Added to the output, of its shape.

        Raises:
            FloatingPointError: If the weights of the gate are not finite.
            ValueError: If the input does not consist of whole clips, if options are forced for
                another number of clips, if the gate leaves no option on, or if it is traced.
        """
        if leaves_python():
            raise ValueError(
                f'{self.layer_name}: expected the network that optimize was given, to trace or '
                'export it; got its optimised copy'
            )
        try:
            found = None if self.executor is None else self.executor(x, residual, self.forced)
            y, charges = found or self._eager(x, residual, self.forced)
        except FloatingPointError as error:
            raise FloatingPointError(f'{self.layer_name}: {error}') from error
        self.report(charges)
        return y

    def report(self, charges: Charges) -> None:
        """Keep what a run was charged, for a backbone that collects it."""
        kept = self.__dict__  # a module looks for parameters first, which takes longer
        if isinstance(charges, int):
            if kept['macs'] is not None:
                kept['macs'] += charges
        elif kept['decisions'] is not None:
            kept['decisions'] = (*kept['decisions'], charges)

    def tensors(self) -> list[Tensor]:
        """What executors keep beside the parameters."""
        parts = (self._packed, self.executor)
        return [t for part in parts for t in getattr(part, 'tensors', list)()]

    def _prepare(self) -> None:
        """Tell executors the layer as it is."""
        conv = self._conv
        conv._parameters.update(self._parameters)
        record = record_of(conv, self.layer_name, self.relu)
        self._packed = PackedConvolution(record) if record and packs(record) else None
        self._eager = Eager(conv, self.relu, self._packed)
        backend = BACKENDS.get(self.backend)
        self.executor = backend.make(record) if backend and record else None

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Self:
        super()._apply(fn, *args, **kwargs)
        self._prepare()
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for made in ('executor', '_eager', '_packed'):  # copies make their own
            del state[made]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def extra_repr(self) -> str:
        return f'{type(self._conv).__name__}, executed by {self.executed_by}'
