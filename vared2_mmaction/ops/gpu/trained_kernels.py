# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Kernels that blend in training; :mod:`.trained` launches them.

A tile has three dimensions: the computed frames of a period of output frames, and positions and
channels, whichever of the two lie side by side last. A period of T output frames is what the
cheapest active temporal option makes of one frame.
"""

from typing import Any

import triton
import triton.language as tl

from ..options import MAX_OPTIONS

CHANNELS_LAST, CHANNELS_FIRST, FRAMES_FIRST = range(3)
"""How maps lie: as N T H W C, N C T H W or N T C H W."""
_BITS = tl.constexpr(2)
"""Bits of an option in a whole number of the active ones."""
_OPTIONS = tl.constexpr(MAX_OPTIONS)
_PARTS = tl.constexpr(4)
"""Sums that are read at once."""
_VARYING = ['channel', 'temporal', 'p_columns', 'q_columns', 'frames', 'clips', 'parts', 'tiles']
"""Numbers of which no kernel makes a kind of its own."""
_ROWS = ['p', 'q']
"""Shares, of which no kernel makes a kind by where their rows begin."""


def _kernel(function: Any) -> Any:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(
        function,
        do_not_specialize=[name for name in names if name in _VARYING],
        do_not_specialize_on_alignment=[name for name in names if name in _ROWS],
    )


@triton.jit
def _nothing():
    return ()


@triton.jit
def _option(active, a: tl.constexpr):
    """Active option number a."""
    return (active >> _BITS * a) & (_OPTIONS - 1)


@triton.jit
def _share(shares, n, columns, active, a: tl.constexpr):
    """Share of active option number a in clips n."""
    if shares is None:
        return (n * 0 + 1).to(tl.float32)
    else:
        return tl.load(shares + n * columns + _option(active, a)).to(tl.float32)


@triton.jit
def _factor(parameter, at, rebuilt, otherwise: tl.constexpr):
    """Factors of cheap operations, and what they are of maps that are not rebuilt."""
    return tl.load(parameter + at, mask=rebuilt, other=otherwise).to(tl.float32)


@triton.jit
def _channels_from(start, LAYOUT: tl.constexpr, SIZE: tl.constexpr):
    """Indices along the channels of a tile."""
    c = start + tl.arange(0, SIZE)
    return c[None, None, :] if LAYOUT == 0 else c[None, :, None]


@triton.jit
def _positions_from(start, LAYOUT: tl.constexpr, SIZE: tl.constexpr):
    """Indices along the positions of a tile."""
    at = start + tl.arange(0, SIZE)
    return at[None, :, None] if LAYOUT == 0 else at[None, None, :]


@triton.jit
def _offsets(n, c, t, at, channels, frames, area, LAYOUT: tl.constexpr):
    """Where elements of maps lie; maps may have more than 2^31 of them."""
    n, c, t, at = n.to(tl.int64), c.to(tl.int64), t.to(tl.int64), at.to(tl.int64)
    if LAYOUT == 0:
        return ((n * frames + t) * area + at) * channels + c
    elif LAYOUT == 1:
        return ((n * channels + c) * frames + t) * area + at
    else:
        return ((n * frames + t) * channels + c) * area + at


@triton.jit
def _pair_row(a, t, f, period, FRAMES: tl.constexpr):
    """Row of sums: active channel option a, output frame t of a period and computed frame f."""
    return (a * period + t) * FRAMES + f


@_kernel
def forward(
    z, y, p, q, cw0, cw1, cw2, cw3, cb0, cb1, cb2, cb3, tw0, tw1, tw2, tw3, tb0, tb1, tb2, tb3,
    k0, k1, k2, k3, channel, temporal, p_columns, q_columns, channels, frames, area,
    OWN: tl.constexpr, OVER: tl.constexpr, FRAMES: tl.constexpr, LAYOUT: tl.constexpr,
    CHANNELS: tl.constexpr, AREA: tl.constexpr,
):  # fmt: skip
    cw, cb, kept = (cw0, cw1, cw2, cw3), (cb0, cb1, cb2, cb3), (k0, k1, k2, k3)
    tw, tb = (tw0, tw1, tw2, tw3), (tb0, tb1, tb2, tb3)
    tile, block, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles = tl.cdiv(channels, CHANNELS)
    c = _channels_from(tile % tiles * CHANNELS, LAYOUT, CHANNELS)
    at = _positions_from(tile // tiles * AREA, LAYOUT, AREA)
    step = 1 << _option(temporal, 0)
    period, computed = FRAMES * step, tl.cdiv(frames, step)
    inside = (c < channels) & (at < area)
    own = _nothing()
    shift = tl.zeros_like(c).to(tl.float32)
    for a in tl.static_range(OWN):
        rebuilt, share = (c >= kept[a]) & (c < channels), _share(p, n, p_columns, channel, a)
        own += (share * _factor(cw[a], c - kept[a], rebuilt, 1.0),)
        shift += share * _factor(cb[a], c - kept[a], rebuilt, 0.0)
    # Channels are blended first, of the computed frames; what is not rebuilt is read once.
    blended = _nothing()
    for f in tl.static_range(FRAMES):
        read = block * FRAMES + f
        there = inside & (read < computed)
        source = z + _offsets(n, c % k0, read, at, k0, computed, area, LAYOUT)
        direct = tl.load(source, mask=there, other=0.0).to(tl.float32)
        total = own[0] * direct
        for a in tl.static_range(1, OWN):
            rebuilt = c >= kept[a]
            source = z + _offsets(n, c % kept[a], read, at, k0, computed, area, LAYOUT)
            x = tl.load(source, mask=there & rebuilt, other=0.0).to(tl.float32)
            total += own[a] * tl.where(rebuilt, x, direct)
        blended += (total,)
    for t in range(period):
        frame = block * period + t
        scales = _nothing()
        offset = tl.zeros_like(c).to(tl.float32)
        for b in tl.static_range(OVER):
            r, share = t % (1 << _option(temporal, b)), _share(q, n, q_columns, temporal, b)
            rebuilt = (r > 0) & (c < channels)
            scale = share * _factor(tw[b], (r - 1) * channels + c, rebuilt, 1.0)
            scales += (scale,)
            offset += scale * shift
            offset += share * _factor(tb[b], (r - 1) * channels + c, rebuilt, 0.0)
        value = tl.zeros_like(blended[0]) + offset
        for f in tl.static_range(FRAMES):
            weight = tl.zeros_like(offset)
            for b in tl.static_range(OVER):
                reads = f * step == t - t % (1 << _option(temporal, b))
                weight += tl.where(reads, scales[b], 0.0)
            value += weight * blended[f]
        target = y + _offsets(n, c, frame, at, channels, frames, area, LAYOUT)
        tl.store(target, value.to(y.dtype.element_ty), mask=inside & (frame < frames))


@triton.jit
def _add(sums, value, mask, first):
    """Add to sums, or begin them."""
    tl.store(sums, value + tl.load(sums, mask=mask & (not first), other=0.0), mask=mask)


@_kernel
def backward_maps(
    gradient, z, of_z, sums, p, q, cw0, cw1, cw2, cw3, tw0, tw1, tw2, tw3,
    k0, k1, k2, k3, channel, temporal, p_columns, q_columns, channels, frames, area,
    OWN: tl.constexpr, OVER: tl.constexpr, FRAMES: tl.constexpr, LAYOUT: tl.constexpr,
    CHANNELS: tl.constexpr, AREA: tl.constexpr,
):  # fmt: skip
    cw, kept, tw = (cw0, cw1, cw2, cw3), (k0, k1, k2, k3), (tw0, tw1, tw2, tw3)
    start, part, parts, n = (
        tl.program_id(0) * CHANNELS, tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    )  # fmt: skip
    POSITIONS: tl.constexpr = 1 if LAYOUT == 0 else 2  # the dimension of a tile
    s = _channels_from(start, LAYOUT, CHANNELS)  # computed channels
    step = 1 << _option(temporal, 0)
    period, computed, tiles = FRAMES * step, tl.cdiv(frames, step), tl.cdiv(area, AREA)
    rows = (OWN * FRAMES + 1) * period
    sums += (n.to(tl.int64) * parts + part) * rows * channels
    for item in range(part, tiles * tl.cdiv(frames, period), parts):
        block, at = item // tiles, _positions_from(item % tiles * AREA, LAYOUT, AREA)
        inside = (s < k0) & (at < area)
        x = _nothing()
        found = _nothing()
        for f in tl.static_range(FRAMES):
            read = block * FRAMES + f
            source = z + _offsets(n, s, read, at, k0, computed, area, LAYOUT)
            value = tl.load(source, mask=inside & (read < computed), other=0.0).to(tl.float32)
            x += (value,)
            found += (tl.zeros_like(value),)
        # What an option makes of these channels: each output channel is read once an option, but
        # of those that it does not rebuild the dearest option takes care.
        for a in tl.static_range(OWN):
            k = kept[a]
            for m in range(0 if a == 0 else 1, tl.where(start < k, tl.cdiv(channels, k), 0)):
                c = s + m * k
                to = (s < k) & (c < channels)
                own = _share(p, n, p_columns, channel, a)
                own *= _factor(cw[a], c - k, to & (c >= k), 1.0)
                if a == 0:
                    for other in tl.static_range(1, OWN):
                        also = _share(p, n, p_columns, channel, other)
                        own += tl.where(c < kept[other], also, 0.0)
                for t in range(period):
                    frame = block * period + t
                    source = gradient + _offsets(n, c, frame, at, channels, frames, area, LAYOUT)
                    written = to & (at < area) & (frame < frames)
                    g = tl.load(source, mask=written, other=0.0).to(tl.float32)
                    scales = _nothing()
                    for b in tl.static_range(OVER):
                        r = t % (1 << _option(temporal, b))
                        rebuilt = to & (r > 0)
                        scale = _factor(tw[b], (r - 1) * channels + c, rebuilt, 1.0)
                        scales += (own * _share(q, n, q_columns, temporal, b) * scale,)
                    added = _nothing()
                    for f in tl.static_range(FRAMES):
                        weight, pair = tl.zeros_like(own), False
                        for b in tl.static_range(OVER):
                            reads = f * step == t - t % (1 << _option(temporal, b))
                            weight += tl.where(reads, scales[b], 0.0)
                            pair = pair | reads
                        added += (found[f] + weight * g,)
                        if pair:
                            row = _pair_row(a, t, f, period, FRAMES)
                            dot = tl.sum(g * x[f], POSITIONS, keep_dims=True)
                            _add(sums + row.to(tl.int64) * channels + c, dot, to, item == part)
                    found = added
                    if a == 0:
                        row = (rows - period + t).to(tl.int64)
                        total = tl.sum(g, POSITIONS, keep_dims=True)
                        _add(sums + row * channels + c, total, to, item == part)
        for f in tl.static_range(FRAMES):
            read = block * FRAMES + f
            target = of_z + _offsets(n, s, read, at, k0, computed, area, LAYOUT)
            value = found[f].to(of_z.dtype.element_ty)
            tl.store(target, value, mask=inside & (read < computed))
        tl.debug_barrier()  # what is added to next was written by other threads, perhaps


@triton.jit
def _total(sums, n, row, c, channels, rows, clips, parts):
    """Sums of all parts, (clips, channels)."""
    total = tl.zeros_like(n[:, None] + c[None, :]).to(tl.float32)
    there = (n < clips)[:, None] & (c < channels)[None, :]
    source = sums + (n.to(tl.int64) * parts * rows * channels)[:, None]
    source += (row * channels + c)[None, :]
    for first in range(0, parts, _PARTS):
        for ahead in tl.static_range(_PARTS):  # loads that do not wait for each other
            part = first + ahead
            mask = there & (part < parts)
            total += tl.load(source + part.to(tl.int64) * rows * channels, mask=mask, other=0.0)
    return total


@triton.jit
def _channel_option(
    sums, partial, p, q, weight, bias, tw, of_weight, of_bias, k, task,
    channel, temporal, p_columns, q_columns, channels, clips, parts,
    A: tl.constexpr, OWN: tl.constexpr, OVER: tl.constexpr, FRAMES: tl.constexpr,
    CLIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients of an active channel option's parameters, and a part of that of its share."""
    step = 1 << _option(temporal, 0)
    period = FRAMES * step
    rows = (OWN * FRAMES + 1) * period
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    rebuilt = (c >= k) & (c < channels)
    scale, shift = _factor(weight, c - k, rebuilt, 1.0), _factor(bias, c - k, rebuilt, 0.0)
    of_scale, of_shift = tl.zeros_like(scale), tl.zeros_like(scale)
    for start in range(0, clips, CLIPS):
        n = start + tl.arange(0, CLIPS)
        known = tl.minimum(n, clips - 1)
        own = tl.zeros_like(n[:, None] + c[None, :]).to(tl.float32)
        own_shift = tl.zeros_like(own)
        for t in range(period):
            row = rows - period + t + c * 0
            total = _total(sums, n, row, c, channels, rows, clips, parts)
            for b in tl.static_range(OVER):
                r = t % (1 << _option(temporal, b))
                made = (r > 0) & (c < channels)
                over = _factor(tw[b], (r - 1) * channels + c, made, 1.0)[None, :]
                over = over * _share(q, known, q_columns, temporal, b)[:, None]
                row = _pair_row(tl.where(c < k, 0, A), t, (t - r) // step, period, FRAMES)
                own += over * _total(sums, n, row, c, channels, rows, clips, parts)
                own_shift += over * total
        share = _share(p, known, p_columns, channel, A)[:, None]
        of_scale += tl.sum(share * own, 0)
        of_shift += tl.sum(share * own_shift, 0)
        of_share = tl.sum(scale[None, :] * own + shift[None, :] * own_shift, 1)
        at = (n * tl.num_programs(1) + task) * tl.num_programs(0) + tl.program_id(0)
        tl.store(partial + at, of_share, mask=n < clips)
    tl.store(of_weight + c - k, of_scale.to(of_weight.dtype.element_ty), mask=rebuilt)
    tl.store(of_bias + c - k, of_shift.to(of_bias.dtype.element_ty), mask=rebuilt)


@triton.jit
def _frame_offset(
    sums, partial, p, q, cw, cb, weight, bias, of_weight, of_bias, kept, r, task,
    channel, temporal, p_columns, q_columns, channels, clips, parts,
    B: tl.constexpr, OWN: tl.constexpr, FRAMES: tl.constexpr, CLIPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Those of an active temporal option's parameters of one offset, r frames."""
    step = 1 << _option(temporal, 0)
    period = FRAMES * step
    rows = (OWN * FRAMES + 1) * period
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    rebuilt, at = (r > 0) & (c < channels), (r - 1) * channels + c
    scale, shift = _factor(weight, at, rebuilt, 1.0), _factor(bias, at, rebuilt, 0.0)
    of_scale, of_shift = tl.zeros_like(scale), tl.zeros_like(scale)
    for start in range(0, clips, CLIPS):
        n = start + tl.arange(0, CLIPS)
        known = tl.minimum(n, clips - 1)
        own = tl.zeros_like(n[:, None] + c[None, :]).to(tl.float32)
        own_shift = tl.zeros_like(own)
        for t in range(r, period, 1 << _option(temporal, B)):
            row = rows - period + t + c * 0
            total = _total(sums, n, row, c, channels, rows, clips, parts)
            own_shift += total
            for a in tl.static_range(OWN):
                k, share = kept[a], _share(p, known, p_columns, channel, a)[:, None]
                made = (c >= k) & (c < channels)
                row = _pair_row(tl.where(c < k, 0, a), t, (t - r) // step, period, FRAMES)
                value = _total(sums, n, row, c, channels, rows, clips, parts)
                own += share * _factor(cw[a], c - k, made, 1.0)[None, :] * value
                own += share * _factor(cb[a], c - k, made, 0.0)[None, :] * total
        share = _share(q, known, q_columns, temporal, B)[:, None]
        of_scale += tl.sum(share * own, 0)
        of_shift += tl.sum(share * own_shift, 0)
        of_share = tl.sum(scale[None, :] * own + shift[None, :] * own_shift, 1)
        to = (n * tl.num_programs(1) + task) * tl.num_programs(0) + tl.program_id(0)
        tl.store(partial + to, of_share, mask=n < clips)
    tl.store(of_weight + at, of_scale.to(of_weight.dtype.element_ty), mask=rebuilt)
    tl.store(of_bias + at, of_shift.to(of_bias.dtype.element_ty), mask=rebuilt)


@_kernel
def backward_factors(
    sums, partial, p, q, cw0, cw1, cw2, cw3, cb0, cb1, cb2, cb3, tw0, tw1, tw2, tw3,
    tb0, tb1, tb2, tb3, of_cw0, of_cw1, of_cw2, of_cw3, of_cb0, of_cb1, of_cb2, of_cb3,
    of_tw0, of_tw1, of_tw2, of_tw3, of_tb0, of_tb1, of_tb2, of_tb3,
    k0, k1, k2, k3, channel, temporal, p_columns, q_columns, channels, clips, parts,
    OWN: tl.constexpr, OVER: tl.constexpr, FRAMES: tl.constexpr, CLIPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    cw, cb, kept = (cw0, cw1, cw2, cw3), (cb0, cb1, cb2, cb3), (k0, k1, k2, k3)
    tw, tb = (tw0, tw1, tw2, tw3), (tb0, tb1, tb2, tb3)
    of_cw, of_cb = (of_cw0, of_cw1, of_cw2, of_cw3), (of_cb0, of_cb1, of_cb2, of_cb3)
    of_tw, of_tb = (of_tw0, of_tw1, of_tw2, of_tw3), (of_tb0, of_tb1, of_tb2, of_tb3)
    task = tl.program_id(1)  # an active channel option, or an offset of a temporal one
    for a in tl.static_range(OWN):
        if task == a:
            _channel_option(
                sums, partial, p, q, cw[a], cb[a], tw, of_cw[a], of_cb[a], kept[a], task,
                channel, temporal, p_columns, q_columns, channels, clips, parts,
                a, OWN, OVER, FRAMES, CLIPS, CHANNELS,
            )  # fmt: skip
    r = task - OWN
    for b in tl.static_range(OVER):
        offsets = 1 << _option(temporal, b)
        if (r >= 0) & (r < offsets):
            _frame_offset(
                sums, partial, p, q, cw, cb, tw[b], tb[b], of_tw[b], of_tb[b], kept, r, task,
                channel, temporal, p_columns, q_columns, channels, clips, parts,
                b, OWN, FRAMES, CLIPS, CHANNELS,
            )  # fmt: skip
        r -= offsets


@triton.jit
def _sum(values, length, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(values + at, mask=at < length, other=0.0)
    return tl.sum(total, 0)


@_kernel
def backward_shares(
    partial, of_p, of_q, channel, temporal, p_columns, q_columns, tiles, tasks,
    OWN: tl.constexpr, OVER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    column = tl.arange(0, _OPTIONS)
    partial += n * tasks * tiles
    if of_p is not None:
        found = tl.zeros((_OPTIONS,), tl.float32)
        for a in tl.static_range(OWN):
            value = _sum(partial + a * tiles, tiles, BLOCK)
            found = tl.where(column == _option(channel, a), value, found)
        to = of_p + n * p_columns + column
        tl.store(to, found.to(of_p.dtype.element_ty), mask=column < p_columns)
    if of_q is not None:
        found = tl.zeros((_OPTIONS,), tl.float32)
        partial += OWN * tiles
        for b in tl.static_range(OVER):
            length = tiles << _option(temporal, b)  # all offsets
            value = _sum(partial, length, BLOCK)
            found = tl.where(column == _option(temporal, b), value, found)
            partial += length
        to = of_q + n * q_columns + column
        tl.store(to, found.to(of_q.dtype.element_ty), mask=column < q_columns)
