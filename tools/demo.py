# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Classifies one video, and shows what that took and what every layer decided."""

import argparse
import os
import sys
from collections.abc import Sequence

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from vared2_mmaction.apis import Recognition, load_inferencer, recognize
from vared2_mmaction.apis.inference import check_video
from vared2_mmaction.visualization import decisions

TOP = 5
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
        '--out',
        metavar='FILE',
        help=f'figure to write, {", ".join(SUFFIXES)}: frames and decisions',
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
    costs = (found.compute_gmacs, found.static_gmacs, found.overhead_gmacs)
    executed, static, overhead = (f'{gmacs:#.3g}' for gmacs in costs)
    each = 'a view, mean' if views > 1 else 'a view'
    return (
        f'{views} view{"s" * (views > 1)} of {" x ".join(map(str, size))} '
        '(frames x height x width)\n'
        f'compute: {100 * found.compute_ratio:.1f} % of the static convolutions, '
        f'{executed} of {static} GMACs {each}\n'
        f'gates and cheap operations: {overhead} GMACs on top, '
        f'{100 * found.overhead_gmacs / found.static_gmacs:.2f} % of the static convolutions'
    )


def describe(video: str, found: Recognition) -> str:
    """The best classes and the compute, in words."""
    best = zip(found.scores[:TOP], found.labels, strict=False)
    lines = [f'{score:8.4f}  {label}' for score, label in best]
    return '\n'.join((video, *lines, describe_compute(found)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if args.out:
            check_out(args.out)
        check_video(args.video)  # before the network is built
        inferencer = load_inferencer(args.config, args.checkpoint, args.device, args.labels)
        found = recognize(inferencer, args.video)
        print(describe(args.video, found))
        if args.out:
            best = f'{os.path.basename(args.video)}: {found.labels[0]} {found.scores[0]:.4f}'
            title = f'{best}\n{describe_compute(found)}'
            figure = decisions.draw(found.frames.numpy(), found.layers, found.policy.numpy(), title)
            figure.savefig(args.out, dpi=150)
    except (ValueError, OSError) as error:
        sys.exit(f'{parser.prog}: error: {str(error).partition(chr(10))[0]}')


if __name__ == '__main__':
    main()
