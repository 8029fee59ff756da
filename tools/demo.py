# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Classifies one video, and shows what that took and what every layer decided."""

import argparse
import os
import sys
from collections.abc import Sequence

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from vared2_mmaction.apis import Recognition, load_inferencer, recognize
from vared2_mmaction.visualization import decisions

SUFFIXES = ('.png', '.pdf', '.svg')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('video', metavar='VIDEO', help='path of the video')
    parser.add_argument('config', metavar='CONFIG', help='path of the config of a dynamic network')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='path or URL')
    parser.add_argument(
        '--device', help='such as cpu or cuda:0; default: cuda if there is one, else cpu'
    )
    parser.add_argument('--labels', metavar='FILE', help='names of the classes, one a line')
    parser.add_argument(
        '--out', metavar='FILE', help=f'figure to write, {", ".join(SUFFIXES)}: frames and decisions'
    )
    return parser


def check_out(path: str) -> None:
    """Whether a figure can be written there, before anything is computed."""
    if not path.lower().endswith(SUFFIXES):
        raise ValueError(f'--out {path!r}: expected a name that ends in {", ".join(SUFFIXES)}')
    if not os.path.isdir(os.path.dirname(path) or '.'):
        raise FileNotFoundError(f'--out {path!r}: there is no such folder')
    if os.path.isdir(path):
        raise IsADirectoryError(f'--out {path!r}: is a folder')


def describe_compute(found: Recognition) -> str:
    """What the video took, in words."""
    views, *size = found.frames.shape[:4]
    digits = 2 if found.static_gmacs >= 1 else 5
    executed, static, overhead = (
        f'{gmacs:.{digits}f}'
        for gmacs in (found.compute_gmacs, found.static_gmacs, found.overhead_gmacs)
    )
    each = 'a view, mean' if views > 1 else 'a view'
    return (
        f'{views} view{"s" * (views > 1)} of {" x ".join(map(str, size))} '
        '(frames x height x width)\n'
        f'compute: {100 * found.compute_ratio:.1f} % of the static convolutions, '
        f'{executed} of {static} GMACs {each}\n'
        f'gates and cheap operations: {overhead} GMACs on top, '
        f'{100 * found.overhead_gmacs / found.static_gmacs:.2f} %'
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if args.out:
            check_out(args.out)
        if not os.path.isfile(args.video):
            raise FileNotFoundError(f'VIDEO={args.video!r}: no such file')
        inferencer = load_inferencer(args.config, args.checkpoint, args.device, args.labels)
        found = recognize(inferencer, args.video)
        best = [f'{s:8.4f}  {n}' for s, n in zip(found.scores[:5], found.labels, strict=False)]
        compute = describe_compute(found)
        print(args.video, *best, compute, sep='\n')
        if args.out:
            title = f'{os.path.basename(args.video)}: {best[0].strip()}\n{compute}'
            figure = decisions.draw(found.frames.numpy(), found.layers, found.policy.numpy(), title)
            figure.savefig(args.out, dpi=150)
    except (ValueError, OSError) as error:
        sys.exit(f'{parser.prog}: error: {str(error).partition(chr(10))[0]}')


if __name__ == '__main__':
    main()
