# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Classifies one video, or the actions in boxes of it, and shows what every layer decided."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from commands.cli import add_optimize_option, check_out, run_tool
from commands.people import find_people
from policy_report import boxes, decisions
from vared2_mmaction.apis import (
    Detection,
    Recognition,
    detect,
    load_detector,
    load_inferencer,
    recognize,
)
from vared2_mmaction.apis.clips import Video, check_box, open_video
from vared2_mmaction.apis.inference import Computation, check_video, read_config

TOP = 5
HEIGHT = 240
"""Of a frame that boxes are drawn on, pixels."""
SUFFIXES = ('.png', '.pdf', '.svg')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('video', metavar='VIDEO', help='path of the video')
    parser.add_argument('config', metavar='CONFIG', help='path of the config of a dynamic network')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='path or URL')
    parser.add_argument(
        '--device', help='such as cpu or cuda:0; default: cuda if there is one, else cpu'
    )
    parser.add_argument(
        '--labels',
        metavar='FILE',
        help='names of the classes, one a line; of actions, also a label map of AVA',
    )
    parser.add_argument(
        '--out',
        metavar='FILE',
        help=f'figure to write, {", ".join(SUFFIXES)}: frames and decisions',
    )
    add_optimize_option(parser)
    detection = parser.add_argument_group('action detection, where CONFIG is of a detector')
    detection.add_argument(
        '--timestamp', type=float, metavar='SECONDS', help='default: the middle of the video'
    )
    source = detection.add_mutually_exclusive_group()
    source.add_argument(
        '--boxes',
        metavar='FILE',
        help='boxes at that time, x1,y1,x2,y2 in pixels, one a line; default: the whole frame',
    )
    source.add_argument(
        '--detector',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help="finds the boxes: mmdet's files of a detector of people",
    )
    return parser


def read_boxes(path: str, video: Video) -> np.ndarray:
    """Read boxes of a video, (boxes, 4), from a file of ``x1,y1,x2,y2`` in pixels, one a line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no box or outside the frame; names the line. Or if there is none.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'BOXES={path!r}: no such file')
    try:
        lines = Path(path).read_text('utf-8-sig').split('\n')
    except UnicodeDecodeError as error:
        raise ValueError(f'BOXES={path!r}: expected text, x1,y1,x2,y2 a line: {error}') from error
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    boxes = [_read_box(line, f'BOXES={path!r}, line {number}', video) for number, line in numbered]
    if not boxes:
        raise ValueError(f'BOXES={path!r}: expected lines x1,y1,x2,y2, found none')
    return np.stack(boxes)


def _read_box(line: str, where: str, video: Video) -> np.ndarray:
    try:
        box = np.array([float(number) for number in line.split(',')])
    except ValueError as error:
        raise ValueError(f'{where}: expected x1,y1,x2,y2, found {line.strip()[:80]!r}') from error
    check_box(box, where, video)
    return box


def describe_compute(found: Computation) -> str:
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


class Answer(NamedTuple):
    """What is printed, and what the figure shows."""

    text: str
    title: str
    frames: np.ndarray
    found: Computation


def describe_scores(labels: Sequence[str], scores: Sequence[float]) -> list[str]:
    """The best classes, a line each."""
    best = zip(scores[:TOP], labels, strict=False)
    return [f'{score:8.4f}  {label}' for score, label in best]


def describe_boxes(found: Detection, whole: bool) -> list[str]:
    """The best actions of each box, in words."""
    video = found.video
    lines = [f'clip around {found.frame / video.fps:.2f} s, frame {found.frame} of {video.frames}']
    for number, box in enumerate(found.boxes):
        where = ', '.join(f'{pixel:.0f}' for pixel in box)
        why = ', the whole frame: no boxes and no detector are given' if whole else ''
        lines.append(f'box {number + 1} ({where}){why}')
        lines += describe_scores(found.labels[number], found.scores[number])
    return lines


def draw_frames(found: Detection) -> np.ndarray:
    """What the network saw, with numbered boxes and their best action."""
    drawn = []
    for number, corners in enumerate(found.boxes / found.video.size):
        line = f'{number + 1}: {found.labels[number][0]} {found.scores[number][0]:.2f}'
        drawn.append(boxes.Box(corners, [line], boxes.PREDICTED))
    frames = [boxes.draw_boxes(frame, drawn, HEIGHT) for frame in found.frames[0].numpy()]
    return np.stack(frames)[None]


def what_to_load(args: argparse.Namespace) -> tuple:
    """Arguments of what loads a network."""
    return args.config, args.checkpoint, args.device, args.labels, not args.no_optimize


def answer_recognition(args: argparse.Namespace) -> Answer:
    """Classifies the video."""
    for option in ('timestamp', 'boxes', 'detector'):
        if getattr(args, option) is not None:
            raise ValueError(f'--{option}: CONFIG={args.config!r} is of a recognizer, no detector')
    inferencer = load_inferencer(*what_to_load(args))
    found: Recognition = recognize(inferencer, args.video)
    best = f'{os.path.basename(args.video)}: {found.labels[0]} {found.scores[0]:.4f}'
    lines = [args.video, *describe_scores(found.labels, found.scores)]
    return Answer('\n'.join(lines), best, found.frames.numpy(), found)


def answer_detection(args: argparse.Namespace) -> Answer:
    """Scores the actions in boxes of the video."""
    video = open_video(args.video)  # what is wrong with it shows before the network is built
    moment = video.frame_at(args.timestamp) / video.fps
    given = None if args.boxes is None else read_boxes(args.boxes, video)
    if args.detector:
        config, checkpoint = args.detector
        given = find_people(config, checkpoint, args.video, args.timestamp, args.device)
    detector = load_detector(*what_to_load(args))
    found = detect(detector, args.video, given, args.timestamp)
    count = f'{len(found.boxes)} box{"es" * (len(found.boxes) > 1)}'
    title = f'{os.path.basename(args.video)}: {count} around {moment:.2f} s'
    lines = [args.video, *describe_boxes(found, whole=given is None)]
    return Answer('\n'.join(lines), title, draw_frames(found), found)


def show(args: argparse.Namespace) -> None:
    if args.out:
        check_out('--out', args.out, *SUFFIXES)
    check_video(args.video)  # before the network is built
    detection = 'roi_head' in read_config(args.config).model
    answer = answer_detection(args) if detection else answer_recognition(args)
    found = answer.found
    print(f'{answer.text}\n{describe_compute(found)}')
    if args.out:
        title = f'{answer.title}\n{describe_compute(found)}'
        figure = decisions.draw(answer.frames, found.layers, found.policy.numpy(), title)
        figure.savefig(args.out, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), show, argv)


if __name__ == '__main__':
    main()
