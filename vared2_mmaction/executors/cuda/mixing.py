# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Kernels that mix options with gradients: one pass over the maps forward, and one back.

With the shares p and q of channel and temporal options, and the tables of their cheap operations::

    m[c, f] = sum_i p_i scale_i[c] z[c mod k_i, f]
    y[c, t] = sum_j q_j (scale_j[c, t] (m[c, f_j(t)] + sum_i p_i shift_i[c]) + shift_j[c, t])

where f_j(t) is the computed frame that option j makes frame t of. Everything repeats after a period
of 2^j frames of the last option, so that a program makes one period of a tile of channels and
positions. What a program sums over positions it writes to a place of its own: gradients are the
same in every run. All sums are in float32.
"""
# mypy: disable-error-code="assignment, misc"

import triton
import triton.language as tl

_UNSPECIALISED = str.split(
    'k0 k1 k2 k3 z_clip z_frame z_channel y_clip y_frame y_channel channels frames computed'
)


@triton.jit
def _along(values, dimension: tl.constexpr):
    """Numbers along a dimension of a tile."""
    return values[None, :] if dimension == 1 else values[:, None]


@triton.jit
def _place(start, channel, at, of_channel, unit, LAST: tl.constexpr):
    """Where elements lie. Strides are given in units, the only number whose divisors are known to
    the compiler: of channels, if these lie innermost, otherwise of positions of a frame."""
    if LAST:
        return (start + at) * unit + channel
    return (start + channel * of_channel) * unit + at


@triton.jit
def _share(shares, clip, n, OPTIONS: tl.constexpr):
    """Share of an option for a clip, one where it is the only one."""
    return tl.load(shares + clip * OPTIONS + n) if OPTIONS > 1 else 1.0


@triton.jit
def _wrapped(c, kept, LAST: tl.constexpr, VECTOR: tl.constexpr):
    """Computed channels that channels are made of. Vectors stay together, as each number of
    channels is one of vectors."""
    source = c % kept
    if LAST:
        source = tl.max_contiguous(tl.multiple_of(source, (1, VECTOR)), (1, VECTOR))
    return source


@triton.jit
def _mixed(
    z, own, c, inside, block, at, kept, z_frame, z_channel, z_unit, computed,
    OWN: tl.constexpr, FRAMES: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """m of the computed frames of a period, for channels c of the output."""
    mixed = ()
    for f in tl.static_range(FRAMES):
        read = block * FRAMES + f
        there = inside & (read < computed)
        first = c if WHOLE else _wrapped(c, kept[0], LAST, VECTOR)
        place = _place(read * z_frame, first, at, z_channel, z_unit, LAST)
        direct = tl.load(z + place, mask=there, other=0.0).to(tl.float32)
        total = own[0] * direct
        for a in tl.static_range(1, OWN):
            rebuilt = c >= kept[a]
            other = _wrapped(c, kept[a], LAST, VECTOR)
            place = _place(read * z_frame, other, at, z_channel, z_unit, LAST)
            x = tl.load(z + place, mask=there & rebuilt, other=0.0).to(tl.float32)
            total += own[a] * tl.where(rebuilt, x, direct)
        mixed += (total,)
    return mixed


@triton.jit(do_not_specialize=_UNSPECIALISED)
def forward(
    z, y, p, q, tables, k0, k1, k2, k3, z_clip, z_frame, z_channel, z_unit,
    y_clip, y_frame, y_channel, y_unit, channels, frames, computed, area,
    OWN: tl.constexpr, OVER: tl.constexpr, SOURCES: tl.constexpr, FRAMES: tl.constexpr,
    PERIOD: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS: tl.constexpr, AREA: tl.constexpr,
):  # fmt: skip
    """Mix. Numbers of channels are given in vectors, which it is so known to be whole."""
    kept = (k0 * VECTOR, k1 * VECTOR, k2 * VECTOR, k3 * VECTOR)
    channels = channels * VECTOR
    tiles = tl.cdiv(channels, CHANNELS)
    tile, block, clip = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    z += clip * z_clip * z_unit
    y += clip * y_clip * y_unit
    c = _along(tile % tiles * CHANNELS + tl.arange(0, CHANNELS), 1 if LAST else 0)
    at = _along(tile // tiles * AREA + tl.arange(0, AREA), 0 if LAST else 1)
    exists = c < channels
    inside = exists & (at < area)
    own = ()
    constant = tl.zeros_like(c).to(tl.float32)
    for a in tl.static_range(OWN):
        share = _share(p, clip, a, OWN)
        own += (share * tl.load(tables + a * channels + c, mask=exists, other=0.0),)
        shift = tl.load(tables + (OWN + a) * channels + c, mask=exists, other=0.0)
        constant += share * shift
    mixed = _mixed(
        z, own, c, inside, block, at, kept, z_frame, z_channel, z_unit, computed,
        OWN, FRAMES, WHOLE, LAST, VECTOR,
    )  # fmt: skip
    over = tables + 2 * OWN * channels
    for t in tl.static_range(PERIOD):
        total = tl.zeros_like(mixed[0])
        for b in tl.static_range(OVER):
            share = _share(q, clip, b, OVER)
            row = over + (b * PERIOD + t) * channels + c
            scale = share * tl.load(row, mask=exists, other=0.0)
            shift = share * tl.load(row + OVER * PERIOD * channels, mask=exists, other=0.0)
            total += scale * (mixed[(SOURCES >> 4 * (b * PERIOD + t)) & 15] + constant) + shift
        frame = block * PERIOD + t
        place = _place(frame * y_frame, c, at, y_channel, y_unit, LAST)
        tl.store(y + place, total.to(y.dtype.element_ty), mask=inside & (frame < frames))


@triton.jit(do_not_specialize=_UNSPECIALISED)
def backward_maps(
    gradient, z, of_z, sums, p, q, tables, k0, k1, k2, k3, z_clip, z_frame, z_channel, z_unit,
    y_clip, y_frame, y_channel, y_unit, channels, frames, computed, area,
    OWN: tl.constexpr, OVER: tl.constexpr, SOURCES: tl.constexpr, FRAMES: tl.constexpr,
    PERIOD: tl.constexpr, LAST: tl.constexpr, READS: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS: tl.constexpr, AREA: tl.constexpr,
):  # fmt: skip
    """Gradient of what was computed, and sums over the positions of a tile, of each channel c:

    - of a channel option a, dm[f] z[c mod k_a, f] over all f, where the option rebuilds c or is the
      first; row a;
    - of a frame t and a computed frame f that it is made of, g[t] m[f]; row OWN + t FRAMES + f;
    - of a frame t, g[t]; row OWN + PERIOD FRAMES + t.
    """
    kept = (k0 * VECTOR, k1 * VECTOR, k2 * VECTOR, k3 * VECTOR)
    channels, computed_channels = channels * VECTOR, kept[0]
    ROWS: tl.constexpr = OWN + PERIOD * (FRAMES + 1)
    POSITIONS: tl.constexpr = 0 if LAST else 1  # the dimension of a tile
    tiles = tl.cdiv(computed_channels, CHANNELS)
    tile, block, clip = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    part = tile // tiles * tl.num_programs(1) + block
    sums += (clip * (tl.num_programs(0) // tiles * tl.num_programs(1)) + part) * ROWS * channels
    z += clip * z_clip * z_unit
    of_z += clip * z_clip * z_unit
    gradient += clip * y_clip * y_unit
    over = tables + 2 * OWN * channels
    start = tile % tiles * CHANNELS
    s = _along(start + tl.arange(0, CHANNELS), 1 if LAST else 0)  # computed channels
    at = _along(tile // tiles * AREA + tl.arange(0, AREA), 0 if LAST else 1)
    x = ()
    found = ()
    for f in tl.static_range(FRAMES):
        read = block * FRAMES + f
        there = (s < computed_channels) & (at < area) & (read < computed)
        place = _place(read * z_frame, s, at, z_channel, z_unit, LAST)
        value = tl.load(z + place, mask=there, other=0.0).to(tl.float32)
        x += (value,)
        found += (tl.zeros_like(value),)
    for a in tl.static_range(OWN):
        k = kept[a]
        # Of channels that a later option computes as well the first takes care.
        for times in range(0 if a == 0 else 1, tl.where(start < k, tl.cdiv(channels, k), 0)):
            c = s + times * k
            to = (s < k) & (c < channels)
            inside = to & (at < area)
            own = _share(p, clip, a, OWN)
            own = own * tl.load(tables + a * channels + c, mask=to, other=0.0)
            mixed = x
            if a == 0:
                every = (own,)
                for other in tl.static_range(1, OWN):
                    share = _share(p, clip, other, OWN)
                    scale = tl.load(tables + other * channels + c, mask=to, other=0.0)
                    every += (share * scale,)
                    own += tl.where(c < kept[other], share, 0.0)
                mixed = _mixed(
                    z, every, c, inside, block, at, kept, z_frame, z_channel, z_unit, computed,
                    OWN, FRAMES, False, LAST, VECTOR,
                )  # fmt: skip
            of_mixed = ()
            for _ in tl.static_range(FRAMES):
                of_mixed += (tl.zeros_like(x[0]),)
            for t in tl.static_range(PERIOD):
                frame = block * PERIOD + t
                place = _place(frame * y_frame, c, at, y_channel, y_unit, LAST)
                g = tl.load(gradient + place, mask=inside & (frame < frames), other=0.0)
                g = g.to(tl.float32)
                if a == 0:
                    total = tl.sum(g, POSITIONS, keep_dims=True)
                    row = OWN + PERIOD * FRAMES + t
                    tl.store(sums + row * channels + c, total, mask=to)
                added = ()
                for f in tl.static_range(FRAMES):
                    if (READS >> (t * FRAMES + f)) & 1:
                        weight = tl.zeros_like(c).to(tl.float32)
                        for b in tl.static_range(OVER):
                            if (SOURCES >> 4 * (b * PERIOD + t)) & 15 == f:
                                share = _share(q, clip, b, OVER)
                                scale = over + (b * PERIOD + t) * channels + c
                                weight += share * tl.load(scale, mask=to, other=0.0)
                        added += (of_mixed[f] + weight * g,)
                        if a == 0:
                            dot = tl.sum(g * mixed[f], POSITIONS, keep_dims=True)
                            row = OWN + t * FRAMES + f
                            tl.store(sums + row * channels + c, dot, mask=to)
                    else:
                        added += (of_mixed[f],)
                of_mixed = added
            dot = tl.zeros_like(x[0])
            added = ()
            for f in tl.static_range(FRAMES):
                dot += of_mixed[f] * x[f]
                added += (found[f] + own * of_mixed[f],)
            found = added
            tl.store(sums + a * channels + c, tl.sum(dot, POSITIONS, keep_dims=True), mask=to)
    for f in tl.static_range(FRAMES):
        read = block * FRAMES + f
        there = (s < computed_channels) & (at < area) & (read < computed)
        place = _place(read * z_frame, s, at, z_channel, z_unit, LAST)
        tl.store(of_z + place, found[f].to(of_z.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=['k0', 'k1', 'k2', 'k3', 'channels', 'clips'])
def backward_factors(
    sums, of_tables, of_shares, p, q, tables, k0, k1, k2, k3, channels, clips,
    OWN: tl.constexpr, OVER: tl.constexpr, OPTIONS: tl.constexpr, FRAMES: tl.constexpr,
    PERIOD: tl.constexpr, CLIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients of a table's row, and what a tile of channels adds to those of a share.

    A program has a channel option a, or a temporal option and a frame of the period.
    """
    ROWS: tl.constexpr = OWN + PERIOD * (FRAMES + 1)
    task, tasks = tl.program_id(1), OWN + OVER * PERIOD
    c = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    exists = c < channels
    over = tables + 2 * OWN * channels
    is_channel = task < OWN
    b = tl.maximum(task - OWN, 0) // PERIOD
    t = tl.maximum(task - OWN, 0) % PERIOD
    j = (OPTIONS >> (2 * b)) & 3
    f = ((t >> j) << j) >> (OPTIONS & 3)
    k = k0
    for a in tl.static_range(1, OWN):
        k = tl.where(task == a, (k0, k1, k2, k3)[a], k)
    # Where the option computes a channel the sum is that of the first.
    row = tl.where(is_channel, tl.where(c < k, 0, task), OWN + t * FRAMES + f)
    # Rows of the tables: all scales of a dimension, then its shifts.
    of_scale = tl.where(is_channel, task, OWN + task) * channels + c
    of_shift = of_scale + tl.where(is_channel, OWN, OVER * PERIOD) * channels
    scale = tl.load(tables + of_scale, mask=exists, other=0.0)
    shift = tl.load(tables + of_shift, mask=exists, other=0.0)
    scale_sum = tl.zeros((1, CHANNELS), tl.float32)
    shift_sum = tl.zeros((1, CHANNELS), tl.float32)
    for first in range(0, clips, CLIPS):
        n = (first + tl.arange(0, CLIPS))[:, None]
        mask = (n < clips) & exists
        known = tl.minimum(n, clips - 1)
        start = sums + n.to(tl.int64) * ROWS * channels + c
        of_map = tl.load(start + row * channels, mask=mask, other=0.0)
        of_constant = tl.zeros((CLIPS, CHANNELS), tl.float32)
        if is_channel:
            for frame in tl.static_range(PERIOD):
                weight = tl.zeros((CLIPS, CHANNELS), tl.float32)
                for option in tl.static_range(OVER):
                    place = over + (option * PERIOD + frame) * channels + c
                    value = tl.load(place, mask=exists, other=0.0)
                    weight += value * _share(q, known, option, OVER)
                total = (OWN + PERIOD * FRAMES + frame) * channels
                of_constant += weight * tl.load(start + total, mask=mask, other=0.0)
            share = tl.zeros((CLIPS, 1), tl.float32) + _share(p, known, task, OWN)
        else:
            total = (OWN + PERIOD * FRAMES + t) * channels
            of_constant = tl.load(start + total, mask=mask, other=0.0)
            for option in tl.static_range(OWN):
                place = tables + (OWN + option) * channels + c
                value = tl.load(place, mask=exists, other=0.0)
                of_map += of_constant * value * _share(p, known, option, OWN)
            share = tl.zeros((CLIPS, 1), tl.float32) + _share(q, known, b, OVER)
        scale_sum += tl.sum(share * of_map, 0, keep_dims=True)
        shift_sum += tl.sum(share * of_constant, 0, keep_dims=True)
        of_share = tl.sum(scale * of_map + shift * of_constant, 1, keep_dims=True)
        to = of_shares + (tl.program_id(0) * clips + n) * tasks + task
        tl.store(to, of_share, mask=n < clips)
    tl.store(of_tables + of_scale, scale_sum, mask=exists)
    tl.store(of_tables + of_shift, shift_sum, mask=exists)
