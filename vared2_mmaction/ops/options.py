# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the options of a layer are: how many channels and frames option i computes."""

from typing import NamedTuple

MAX_OPTIONS = 4


class Options(NamedTuple):
    """Options of both dimensions of a layer by their numbers, rising: the dearest comes first."""

    channel: tuple[int, ...]
    temporal: tuple[int, ...]


WHOLE = Options((0,), (0,))
"""The dearest alone, which leave nothing to rebuild or to mix."""


def kept(length: int, num_options: int, multiple: int = 1) -> tuple[int, ...]:
    """Channels or frames that each option computes: ceil(length / 2^i).

    A short dimension has fewer options: those that would compute as much as the option before
    them are left out, and so are temporal strides longer than the clip.

    Args:
        length: Number of output channels or output frames.
        num_options: Number of options asked for.
        multiple: What the numbers of all options but the first are rounded down to a multiple of,
            if they are at least twice as many.

    Returns:
        Strictly falling numbers, the first of them ``length``.
    """
    numbers = [length]
    for i in range(1, num_options):
        if 2**i <= length:
            n = -(-length // 2**i)
            numbers.append(n // multiple * multiple if n >= 2 * multiple else n)
    return tuple(numbers)


def available(in_use: tuple[int, ...], number: int) -> tuple[int, ...]:
    """Options in use that an input leaves a layer.

    Args:
        in_use: Options in use, rising.
        number: How many options there are, from 0 on; a short clip has fewer temporal ones.

    Returns:
        Those in use; if there is none of them, the cheapest that there is.
    """
    return tuple(i for i in in_use if i < number) or (number - 1,)
