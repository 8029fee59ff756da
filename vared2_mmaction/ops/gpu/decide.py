# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What gates have answered, read by kernels; the twin of :mod:`vared2_mmaction.ops.answer`."""

import triton
import triton.language as tl

from ..options import MAX_OPTIONS

_WIDTH = tl.constexpr(MAX_OPTIONS)


@triton.jit
def _open_weights(v, forced, clip, clips, v_clip, forced_clip, number, floor, is_forced):
    """Weights V of one dimension's options, and whether a clip's are not finite.

    Args:
        v: Weights before any option is switched off, of the first clip.
        forced: Options that are forced, of the first clip; read where is_forced.
        clip: Numbers of the clips, a block.
        clips: How many there are.
        v_clip: Step from clip to clip in v.
        forced_clip: Step from clip to clip in forced.
        number: Number of options.
        floor: Weight of the cheapest option where all would be off.
        is_forced: Whether options are forced.
    """
    option = tl.arange(0, _WIDTH)[None, :]
    there = clip < clips
    given = tl.load(
        v + clip[:, None] * v_clip + option,
        mask=there[:, None] & (option < number) & (is_forced == 0),
        other=0.0,
    )
    opened = tl.where(given > 0, given, 0.0)
    all_off = (tl.max(opened, 1) == 0)[:, None]
    opened = tl.where(all_off & (option == number - 1), floor, opened)
    opened = tl.where(number == 1, tl.where(option == 0, 1.0, 0.0), opened)
    chosen = tl.load(forced + clip * forced_clip, mask=there & (is_forced != 0), other=0)
    chosen = tl.minimum(chosen, number - 1)[:, None]
    opened = tl.where(is_forced != 0, tl.where(option == chosen, 1.0, 0.0), opened)
    # Infinity less itself is no number either.
    return opened, tl.max(tl.where(given - given == 0, 0, 1), 1) > 0


@triton.jit
def kept_channels(channels, option, multiple):
    """Channels that options compute; the twin of :func:`~vared2_mmaction.ops.kept`."""
    exact = (channels + (1 << option) - 1) >> option
    rounded = exact // multiple * multiple
    return tl.where((option > 0) & (exact >= 2 * multiple), rounded, exact)


@triton.jit
def open_both(
    v, forced, clip, clips, v_clip, v_temporal, forced_clip, channel_options, temporal_options,
    floor, is_forced,
):  # fmt: skip
    """Weights of the channel and of the temporal options, and whether a clip's are not finite."""
    channel, wrong = _open_weights(
        v, forced, clip, clips, v_clip, forced_clip, channel_options, floor, is_forced
    )
    temporal, also_wrong = _open_weights(
        v + v_temporal, forced + 1, clip, clips, v_clip, forced_clip, temporal_options, floor,
        is_forced,
    )  # fmt: skip
    return channel, temporal, wrong | also_wrong


@triton.jit
def find_active(opened):
    """Which options are on, and the dearest of them, for each clip."""
    option = tl.arange(0, _WIDTH)[None, :]
    active = opened > 0
    return active, tl.min(tl.where(active, option, _WIDTH), 1)


@triton.jit
def of_clip(values, clip, here):
    """The value of one clip."""
    return tl.sum(tl.where(clip == here, values, 0))


@triton.jit
def of_option(values, clip, here, option):
    """The value of one option of one clip."""
    options = tl.arange(0, _WIDTH)[None, :]
    return tl.sum(tl.sum(tl.where((clip[:, None] == here) & (options == option), values, 0.0), 1))
