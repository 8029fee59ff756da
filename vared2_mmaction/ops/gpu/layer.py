# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A layer by kernels: its gate's answer stays on the device."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler.errors import CompilationError

from ..answer import Weights
from ..decision import COLUMNS
from ..epilogue import Epilogue
from ..lazy import Made
from .blending import blend
from .convolution import convolve
from .launch import INTERPRETED, reads
from .padded import empty_maps, extent, hand_over, is_followed, padded_channels
from .prepared import Prepared
from .tiles import BLENDING, Tile, fastest, programs, tiles


class Decided(NamedTuple):
    """Where kernels find what clips are to compute."""

    v: Tensor
    """Weights before any option is switched off, (N, 2, options)."""
    forced: Tensor | None
    """Options that are forced, (N or 1, 2), int32."""
    numbers: tuple[int, int]
    """Numbers of channel and temporal options."""
    costs: Tensor
    """Multiply-adds of which charges are made, int64: see ``_charge`` of :mod:`.convolution`."""


class _Launch(NamedTuple):
    """A convolution, but for its tile."""

    owner: Any
    made: Prepared
    clips: Tensor
    decided: Decided | None
    residual: Tensor | None
    relu: bool

    def go(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Launch; returns the output (N, C, T, H, W) and what is charged, (N, 5)."""
        y, charged, convolution, blending = self._arguments()
        if len(y):
            rows, columns, _ = tile.sizes
            positions = y[0, 0].numel()
            most = len(y) * triton.cdiv(y.shape[1], columns) * triton.cdiv(positions, rows)
            with torch.cuda.device_of(y):
                grid = (programs(y, tile, most),)
                convolve[grid](*convolution, *tile.sizes, **tile.options)
                if blending is not None:
                    grid = (programs(y, BLENDING, len(y) * positions),)
                    blend[grid](*blending, *BLENDING.sizes[:2], **BLENDING.options)
        return y, charged

    def compile(self, of: Sequence[Tile]) -> None:
        """Compile what :meth:`go` launches with each tile, side by side. What cannot be compiled
        says so when it is launched."""
        y, _, convolution, _ = self._arguments()

        def warm_up(tile: Tile) -> None:
            with torch.cuda.device_of(y), suppress(RuntimeError, CompilationError):
                convolve.warmup(*convolution, *tile.sizes, grid=(1,), **tile.options)

        with ThreadPoolExecutor(max(len(of), 1)) as pool:
            list(pool.map(warm_up, of))

    def _arguments(self) -> tuple[Tensor, Tensor, tuple, tuple | None]:
        """Output, what is charged, and arguments of the convolution and, if there are options, of
        blending, but for the tile."""
        owner, made, x, decided = self[:4]
        number, inputs = x.shape[:2]
        channels, (frames, height, width) = owner.out_channels, made.output(x)
        written, zeros = channels, True
        if decided is None and self.residual is None:  # then kernels make the zeros behind them
            written, zeros = padded_channels(channels), False
        y = empty_maps(x, channels, (frames, height, width), zeros)
        charged = torch.empty(number, len(COLUMNS), dtype=torch.float64, device=x.device)
        read = padded_channels(inputs) if is_followed(x) else inputs
        aligned = made.aligned if written == channels else math.gcd(8, written)
        residual = y if self.residual is None else self.residual
        computed, costs = y, charged
        gate: tuple[Any, ...] = (y, y, 0, 0, 0, 1, 1)
        floor, is_forced = 0.0, 0
        if decided is not None:
            computed = x.new_empty(number, frames * height * width * channels)
            v, forced, numbers, costs = decided
            is_forced = int(forced is not None)
            step = 0 if forced is None or len(forced) == 1 else 2
            gate = (
                v, made.unforced if forced is None else forced, *v.stride()[:2], step,
                *numbers,
            )  # fmt: skip
            floor = owner.gate.floor
        weighed = (
            *gate[2:],
            made.tables[0].numel(),
            made.table_options,
            floor,
            is_forced,
        )
        followed = (int(self.residual is not None), int(self.relu), made.multiple)
        first, taps = made.taps_in_time(x)
        weight = made.weight[:, first * math.prod(made.kernel[1:]) :]
        clips = max(16, triton.next_power_of_2(number))
        convolution = (
            x, weight, made.bias, made.tables, residual, computed, y, *gate[:2], costs,
            charged,
            number, read, *x.shape[2:], written, frames, height, width,
            x.stride(0), *x.stride()[2:], *_steps(y), *_steps(residual),
            *made.weight.stride()[:2],
            taps, *made.kernel[1:], *made.stride,
            made.padding[0] - first * made.dilation[0], *made.padding[1:], *made.dilation,
            *weighed, int(owner.skip), *followed, 0,
            decided is not None, made.bounded, self._is_placed((frames, height, width)),
            max(made.dilation) > 1,
            aligned, _precision(), clips,
        )  # fmt: skip
        if decided is None or math.prod(decided.numbers) == 1:
            return y, charged, convolution, None
        blending = (
            computed, made.tables, residual, y, *gate[:2], number, channels, frames,
            height * width, *_steps(y), *_steps(residual), *weighed, *followed, clips,
        )  # fmt: skip
        return y, charged, convolution, blending

    def _is_placed(self, output: tuple[int, ...]) -> bool:
        """Whether positions of a frame of the output read their own places in the input."""
        same = self.clips.shape[3:] == output[1:] and set(self.made.stride[1:]) == {1}
        return same and _lies_even(self.clips)

    @property
    def key(self) -> tuple:
        """What the fastest tile depends on."""
        x, made = self.clips, self.made
        return (
            tuple(x.shape), x.stride(), x.dtype, x.device, is_followed(x),
            self.owner.out_channels,
            tuple(made.tables.shape), *made.geometry, self.residual is None, self.relu,
        )  # fmt: skip

    def forced_to(self, channel: int, temporal: int) -> '_Launch':
        """The same with other options."""
        assert self.decided is not None
        options = torch.tensor([[channel, temporal]], dtype=torch.int32, device=self.clips.device)
        return self._replace(decided=self.decided._replace(forced=options))


class DeviceConv(Made):
    """The convolution of one layer by kernels; see
    :class:`~vared2_mmaction.ops.compiled.CompiledConv`, which does the same on a CPU.

    Where kernels do not serve an input, the layer goes on as ever: with gradients, for other types
    than float32, float16 and bfloat16, or if its options cannot be told to kernels. Clips that do
    not lie with channels innermost are laid out so first.
    """

    stays_on_device = True
    """Whether the host is never asked."""

    def __init__(self) -> None:
        self._made: Prepared | None = None
        self._costs_of: dict[tuple[int, torch.device], Tensor] = {}

    def forward(
        self, owner: Any, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Decide by a gate, or as is forced, and convolve.

        Args:
            owner: The layer.
            x: Input, (N, C, T, H, W) or (N T, C, H, W).
            residual: Added to the output, of its shape.

        Returns:
            Output and what is charged, (N, 5), with the columns ``COLUMNS`` of
            :mod:`vared2_mmaction.ops.decision`, where weights of a gate that are not finite make
            NaN. None where kernels do not serve.

        Raises:
            ValueError: If options are forced for another number of clips.
        """
        if not reads(x) or owner.fused_gate is None or owner.fused_gate.is_watched():
            return None
        dtype, x = _computed_in(x)
        made, clips = self._current(owner, dtype), owner._to_clips(x)
        hand_over(x, clips)
        if not made.fits(clips):
            return None
        v = owner.fused_gate.weigh(clips)
        forced = None if owner.forced is None else owner.forced.on(x.device, len(clips))
        added = None if residual is None else _even(owner._to_clips(residual))
        numbers = owner.num_options(x)
        decided = Decided(v, forced, numbers, self._costs(owner, made.output(clips), x.device))
        launch = _Launch(owner, made, _innermost(clips), decided, added, owner.relu)
        of = tiles(x.dtype)
        y, charged = launch.go(of[fastest(launch.key, lambda: _candidates(launch, of))])
        return hand_over(y, owner._from_clips(y)), charged

    def modulate(
        self, owner: Any, x: Tensor, weights: Sequence[Weights], epilogue: Epilogue
    ) -> Tensor | None:
        """Convolve as a stock convolution: by kernels, or by the library where that is faster.

        Args:
            owner: The layer.
            x: Input, (N, C, T, H, W).
            weights: Weights of the options for each clip.
            epilogue: What follows.

        Returns:
            Output, or None where kernels do not serve or the layer has options, which are decided
            on the host where it is told their weights.
        """
        if owner.gate is not None or not reads(x):
            return None
        dtype, x = _computed_in(x)
        made = self._current(owner, dtype)
        if not made.fits(x):
            return None
        residual = None if epilogue.residual is None else _even(epilogue.residual)
        launch = _Launch(owner, made, _innermost(x), None, residual, epilogue.relu)
        # Others take a kernel of their own each, and read or write no whole vectors.
        reads_vectors = owner.in_channels % 8 == 0 or is_followed(x)
        writes_vectors = owner.out_channels % 8 == 0 or residual is None
        usual = reads_vectors and writes_vectors
        of = tiles(dtype) if usual else ()
        calls: list[Callable[[], Any]] = [partial(launch.go, tile) for tile in of]
        calls += made.library_calls(owner, x, epilogue)

        def candidates() -> list[list[Callable[[], Any]]]:
            launch.compile(of)
            return [[call] for call in calls]

        with torch.autocast(x.device.type, enabled=False):
            y = calls[fastest(launch.key, candidates)]()
        return y[0] if isinstance(y, tuple) else y

    def _current(self, owner: Any, dtype: torch.dtype) -> Prepared:
        if self._made is None or not self._made.serves(owner, dtype):
            self._made = Prepared.of(owner, dtype)
        return self._made

    def _costs(self, owner: Any, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """Multiply-adds that clips of some size are charged by."""
        area = sizes[1] * sizes[2]
        if (found := self._costs_of.get((area, device))) is None:
            kernel, kept, (channel, temporal), gate = owner.constants
            numbers = (kernel * area, channel * area, temporal * area * kept[0], gate)
            found = self._costs_of[area, device] = torch.tensor(numbers, device=device)
        return found


def _candidates(launch: _Launch, of: Sequence[Tile]) -> list[list[Callable[[], Any]]]:
    """What each tile takes for a full policy, and for half of the channels and frames."""
    launch.compile(of)
    both = [launch.forced_to(*policy) for policy in ((0, 0), (1, 1))]
    return [[partial(each.go, tile) for each in both] for tile in of]


def _computed_in(x: Tensor) -> tuple[torch.dtype, Tensor]:
    """The type that a convolution computes in, which autocast may have chosen, and its input."""
    if not torch.is_autocast_enabled(x.device.type):
        return x.dtype, x
    dtype = torch.get_autocast_dtype(x.device.type)
    return dtype, x.to(dtype)  # itself, if it is of that type


def _innermost(x: Tensor) -> Tensor:
    """Clips with channels innermost."""
    if x.stride(1) == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last_3d)


def _even(x: Tensor) -> Tensor:
    """Clips with channels innermost, and the same step from any position to the next."""
    follows = x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3)
    if x.stride(1) == 1 and _lies_even(x) and follows and extent(x[:1]) < 2**30:
        return x
    return empty_maps(x, x.shape[1], tuple(x.shape[2:])).copy_(x)


def _lies_even(x: Tensor) -> bool:
    """Whether it is the same step from any position of a frame to the next."""
    return x.stride(3) == x.shape[4] * x.stride(4)


def _steps(x: Tensor) -> tuple[int, int]:
    """From clip to clip, and from position to position, of maps that lie evenly."""
    return x.stride(0), x.stride(4)


def _precision() -> str:
    """How products of float32 are computed: as the setting of PyTorch's own convolutions says, or
    as exactly as by three products."""
    if INTERPRETED:
        return 'ieee'
    return 'tf32' if torch.backends.cudnn.allow_tf32 else 'tf32x3'
