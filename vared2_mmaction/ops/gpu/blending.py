# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Blend the options of those clips for which several are open, for inference."""

import triton
import triton.language as tl

from .decide import find_active, kept_channels, of_clip, of_option, open_both

_SIZES: list[str] = str.split(
    'clips channels frames area v_clip v_temporal forced_clip channel_options temporal_options '
    'table_pair table_options floor is_forced has_residual relu multiple'
)


@triton.jit(do_not_specialize=_SIZES)
def blend(
    computed, tables, residual, y, v, forced, clips, channels, frames, area,
    y_clip, y_position, r_clip, r_position,
    v_clip, v_temporal, forced_clip, channel_options, temporal_options, table_pair, table_options,
    floor, is_forced, has_residual, relu, multiple,
    CLIPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    clip = tl.arange(0, CLIPS)
    opened_c, opened_t, _ = open_both(
        v, forced, clip, clips, v_clip, v_temporal, forced_clip, channel_options, temporal_options,
        floor, is_forced,
    )  # fmt: skip
    active_c, _ = find_active(opened_c)
    active_t, option_t = find_active(opened_t)
    several = (tl.sum(active_c.to(tl.int32), 1) > 1) | (tl.sum(active_t.to(tl.int32), 1) > 1)
    shares_c = tl.where(active_c, opened_c / tl.sum(opened_c, 1)[:, None], 0.0)
    shares_t = tl.where(active_t, opened_t / tl.sum(opened_t, 1)[:, None], 0.0)
    across = tl.cdiv(channels, COLUMNS)
    each = across * tl.cdiv(frames * area, ROWS)
    ends = tl.cumsum(tl.where((clip < clips) & several, each, 0), 0)
    for tile in range(tl.program_id(0), tl.max(ends), tl.num_programs(0)):
        here = tl.sum((tile >= ends).to(tl.int32))
        local = tile - of_clip(ends - each, clip, here)
        dearest = of_clip(option_t, clip, here)
        row = (local // across) * ROWS + tl.arange(0, ROWS)
        column = (local % across) * COLUMNS + tl.arange(0, COLUMNS)
        frame, position = row // area, row % area
        mask = (row < frames * area)[:, None] & (column < channels)[None, :]
        z = computed + here.to(tl.int64) * frames * area * channels
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for i in range(channel_options):
            share_c = of_option(shares_c, clip, here, i)
            if share_c > 0:
                source = column % kept_channels(channels, i, multiple)
                for j in range(temporal_options):
                    share = share_c * of_option(shares_t, clip, here, j)
                    if share > 0:
                        made_from = ((frame >> j) << (j - dearest)) * area + position
                        offset = frame & ((1 << j) - 1)
                        factors = tables + (i * table_options + j) * table_pair
                        factors += offset[:, None] * channels + column[None, :]
                        scale = tl.load(factors, mask=mask, other=0.0)
                        shift = tl.load(factors + table_pair // 2, mask=mask, other=0.0)
                        value = tl.load(
                            z + made_from[:, None] * channels + source[None, :],
                            mask=mask,
                            other=0.0,
                        ).to(tl.float32)
                        total += share * (value * scale + shift)
        added = residual + here.to(tl.int64) * r_clip
        added += (row * r_position)[:, None] + column[None, :]
        total += tl.load(added, mask=mask & (has_residual != 0), other=0.0).to(tl.float32)
        total = tl.where((total < 0) & (relu != 0), 0.0, total)  # NaN stays
        out = y + here.to(tl.int64) * y_clip + (row * y_position)[:, None] + column[None, :]
        tl.store(out, total.to(y.dtype.element_ty), mask=mask)
