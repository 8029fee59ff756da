# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions that compute what a clip needs, and write what is rebuilt from it.

An implicit matrix product: rows are positions of computed frames, columns are computed channels.
Programs share the tiles that there are, which depends on what the gates decided for each clip. Each
tile is written to all places that are rebuilt from it, with the residual added and ReLU applied. Of
clips that blend options, it is written once, to a map that :mod:`.blending` reads.
"""

import triton
import triton.language as tl

from .decide import find_active, kept_channels, of_clip, open_both

TAPS = tl.constexpr(10)
"""How many taps of a kernel in each direction a number has bits for."""
_SIZES: list[str] = str.split(
    'clips frames_in height_in width_in frames height width kernel_height kernel_width '
    'kernel_time step_time step_height step_width pad_time pad_height pad_width apart_time '
    'apart_height apart_width v_clip v_temporal forced_clip channel_options '
    'temporal_options table_pair table_options floor is_forced '
    'skip has_residual relu multiple zero'
)
"""What differs from layer to layer, and is not worth a kernel of its own."""


@triton.jit(do_not_specialize=_SIZES)
def convolve(
    x, weight, bias, tables, residual, computed, y,
    v, forced, costs, charged,
    clips, channels_in, frames_in, height_in, width_in, channels, frames, height, width,
    x_clip, x_frame, x_row, x_column, y_clip, y_position, r_clip, r_position,
    weight_row, weight_tap,
    kernel_time, kernel_height, kernel_width, step_time, step_height, step_width,
    pad_time, pad_height, pad_width, apart_time, apart_height, apart_width,
    v_clip, v_temporal, forced_clip, channel_options, temporal_options, table_pair,
    table_options, floor, is_forced, skip, has_residual, relu, multiple, zero,
    GATED: tl.constexpr, BOUNDED: tl.constexpr, PLACED: tl.constexpr, DILATED: tl.constexpr,
    ALIGNED: tl.constexpr, PRECISION: tl.constexpr, CLIPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    clip = tl.arange(0, CLIPS)
    if GATED:
        opened_c, opened_t, wrong = open_both(
            v, forced, clip, clips, v_clip, v_temporal, forced_clip, channel_options,
            temporal_options, floor, is_forced,
        )  # fmt: skip
        active_c, option_c = find_active(opened_c)
        active_t, option_t = find_active(opened_t)
        several = (tl.sum(active_c.to(tl.int32), 1) > 1) | (tl.sum(active_t.to(tl.int32), 1) > 1)
        if tl.program_id(0) == tl.num_programs(0) - 1:  # which has the fewest tiles
            _charge(
                costs, charged, clip, clips, active_c, option_c, active_t, option_t, wrong,
                channels, frames, multiple,
            )  # fmt: skip
    else:
        option_c = clip * 0
        option_t = clip * 0
        several = clip < 0
        wrong = clip < 0
    area = height * width
    kept_c = tl.where(skip != 0, kept_channels(channels, option_c, multiple), channels)
    kept_t = tl.where(skip != 0, (frames + (1 << option_t) - 1) >> option_t, frames)
    across = tl.cdiv(kept_c, COLUMNS)
    tiles = tl.where(clip < clips, across * tl.cdiv(kept_t * area, ROWS), 0)
    ends = tl.cumsum(tiles, 0)
    depth = tl.arange(0, DEPTH)
    steps = tl.cdiv(channels_in, DEPTH)
    for tile in range(tl.program_id(0), tl.sum(tiles), tl.num_programs(0)):
        here = tl.sum((tile >= ends).to(tl.int32))
        channel_option = of_clip(option_c, clip, here)
        temporal_option = of_clip(option_t, clip, here)
        blended = of_clip(several.to(tl.int32), clip, here) > 0
        invalid = of_clip(wrong.to(tl.int32), clip, here) > 0
        columns = of_clip(across, clip, here)
        local = tile - of_clip(ends - tiles, clip, here)
        stride = 1 << temporal_option
        pace = tl.where(skip != 0, stride, 1)
        computed_frames = of_clip(kept_t, clip, here)
        first_row = (local // columns) * ROWS
        first_column = (local % columns) * COLUMNS
        row = first_row + tl.arange(0, ROWS)
        frame = _quotient(row, area)
        position = row - frame * area
        line = _quotient(position, width)
        place = position - line * width
        from_frame = frame * (pace * step_time) - pad_time
        from_line, from_place = line * step_height - pad_height, place * step_width - pad_width
        if PLACED:  # a position reads its own place in each frame
            at = row * x_column + frame * (pace * step_time * x_frame - area * x_column)
            at -= pad_time * x_frame + pad_height * x_row + pad_width * x_column
        else:
            at = from_frame * x_frame + from_line * x_row + from_place * x_column
        rows = computed_frames * area
        there = row < rows
        seen = there.to(tl.int32)
        if BOUNDED:
            seen = _seen(from_frame, kernel_time, apart_time, frames_in, DILATED)
            seen |= _seen(from_line, kernel_height, apart_height, height_in, DILATED) << TAPS
            in_line = _seen(from_place, kernel_width, apart_width, width_in, DILATED)
            seen |= in_line << 2 * TAPS
            seen = tl.where(there, seen, 0)
        base = x + here.to(tl.int64) * x_clip
        whole = (channel_option == 0) & (temporal_option == 0) & (not blended)
        kernels = weight + first_column * weight_row
        from_x = at[:, None] + depth[None, :]
        from_kernels = (tl.arange(0, COLUMNS) * weight_row)[:, None] + depth[None, :]
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        tap, tap_time, tap_line, tap_place, block = zero, zero, zero, zero, zero
        for _ in range(0, kernel_time * kernel_height * kernel_width * steps):
            wanted = 1
            if BOUNDED:
                wanted = (1 << tap_time) | (1 << (tap_line + TAPS)) | (1 << (tap_place + 2 * TAPS))
            ahead = tap_time * apart_time * x_frame + tap_line * apart_height * x_row
            ahead += tap_place * apart_width * x_column
            first = block * DEPTH
            a = tl.load(
                base + (ahead + first) + from_x,
                mask=(seen & wanted == wanted)[:, None] & (first + depth < channels_in)[None, :],
                other=0.0,
            )
            b = tl.load(kernels + (tap * weight_tap + first) + from_kernels)
            total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
            # The next channels, then the next tap: counting is cheaper than dividing.
            block, carry = _count(block, 1, steps)
            tap += carry
            tap_place, carry = _count(tap_place, carry, kernel_width)
            tap_line, carry = _count(tap_line, carry, kernel_height)
            tap_time += carry
        # Told apart from what is above by a zero, so that it is not kept during the loop.
        row = first_row + zero + tl.arange(0, ROWS)
        column = first_column + tl.arange(0, COLUMNS)
        stored = row < rows
        total += tl.load(bias + column)[None, :]
        if invalid:
            total += float('nan')
        own = kept_channels(channels, channel_option, multiple) // ALIGNED * ALIGNED
        used = (column < own)[None, :]
        to = row  # the first frame that is written, and the position in it
        if stride > 1:
            frame = _quotient(row, area)
            to += (pace - 1) * area * frame
            stored &= frame * pace % stride == 0
        if blended:
            z = computed + here.to(tl.int64) * frames * area * channels
            compact = row
            if stride > pace:
                frame = _quotient(row, area)
                compact -= frame * (stride - pace) // stride * area
            tl.store(
                z + compact[:, None] * channels + column[None, :],
                total.to(computed.dtype.element_ty),
                mask=stored[:, None] & used,
            )
        else:
            factors = tables + (channel_option * table_options + temporal_option) * table_pair
            out = y + here.to(tl.int64) * y_clip
            added = residual + here.to(tl.int64) * r_clip
            lowest = tl.where(relu != 0, 0.0, float('-inf'))
            for _offset in range(stride):
                in_clip = (stored & (to < frames * area))[:, None]
                made = column
                for _ in range(tl.cdiv(channels, own)):
                    makes = used & (made < channels)[None, :]
                    value = total
                    if not whole:
                        scale = tl.load(factors + made, mask=made < channels, other=0.0)
                        shift = tl.load(
                            factors + table_pair // 2 + made, mask=made < channels, other=0.0
                        )
                        value = total * scale[None, :] + shift[None, :]
                    if has_residual != 0:
                        value += tl.load(
                            added + to[:, None] * r_position + made[None, :],
                            mask=in_clip & makes,
                            other=0.0,
                        ).to(tl.float32)
                    value = tl.maximum(value, lowest, propagate_nan=tl.PropagateNan.ALL)
                    tl.store(
                        out + to[:, None] * y_position + made[None, :],
                        value.to(y.dtype.element_ty),
                        mask=in_clip & makes,
                    )
                    made += own
                to += area
                factors += channels


@triton.jit
def _quotient(number, by):
    """Whole quotient of numbers from 0 to 2^20, which takes few instructions in float32."""
    return ((number.to(tl.float32) + 0.5) * (1.0 / by)).to(tl.int32)


@triton.jit
def _seen(first, taps, apart, size, DILATED: tl.constexpr):
    """Which taps of a kernel see the input, a bit for each, of coordinates of the first."""
    before, end = -first, size - first
    if DILATED:
        before = _quotient(tl.maximum(before, 0) + apart - 1, apart)
        end = _quotient(tl.maximum(end, 0) + apart - 1, apart)
    before = tl.minimum(tl.maximum(before, 0), taps)
    end = tl.minimum(tl.maximum(end, before), taps)
    return (1 << end) - (1 << before)


@triton.jit
def _count(value, step, end):
    """Count on, from zero at the end, and whether that was reached."""
    value += step
    carry = (value == end).to(tl.int32)
    return value * (1 - carry), carry


@triton.jit
def _charge(
    costs, charged, clip, clips, active_c, option_c, active_t, option_t, wrong, channels, frames,
    multiple,
):  # fmt: skip
    """Write the columns of :data:`~vared2_mmaction.ops.decision.COLUMNS` of each clip.

    Costs are the multiply-adds of one output element of the convolution times the positions, those
    of rebuilding a channel of a frame, those of rebuilding a frame, and those of the gate.
    """
    options = tl.arange(0, 4)[None, :]
    kept_c = kept_channels(channels, options, multiple)
    kept_t = (frames + (1 << options) - 1) >> options
    unit, channel = tl.load(costs), tl.load(costs + 1)
    temporal, gate = tl.load(costs + 2), tl.load(costs + 3)
    own_c = kept_channels(channels, option_c, multiple).to(tl.int64)
    own_t = ((frames + (1 << option_t) - 1) >> option_t).to(tl.int64)
    executed = unit * own_c * own_t
    rebuilt = channel * own_t * tl.sum(tl.where(active_c, channels - kept_c, 0), 1)
    rebuilt += temporal * tl.sum(tl.where(active_t, frames - kept_t, 0), 1)
    at = charged + clip * 5
    there = clip < clips
    nothing = tl.where(wrong, float('nan'), 0.0)
    static = unit * channels * frames + 0 * own_c
    tl.store(at, executed.to(tl.float64) + nothing, mask=there)
    tl.store(at + 1, static.to(tl.float64), mask=there)
    tl.store(at + 2, (rebuilt + gate).to(tl.float64), mask=there)
    tl.store(at + 3, option_c.to(tl.float64), mask=there)
    tl.store(at + 4, option_t.to(tl.float64), mask=there)
