# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""One self-contained page of a test: figures, strips, and a table of all videos.

File names and class names come from anywhere: Jinja escapes them in HTML, the script in ``report/``
puts them into the page as text only, and a content security policy lets nothing else run or load.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jinja2
import numpy as np

from .categories import Category
from .strips import Strip
from .videos import Videos

_REPORT = Path(__file__).parent / 'report'
_JPEG_QUALITY = 85


class Page(NamedTuple):
    """What a page shows."""

    title: str
    videos: Videos
    classes: Sequence[str]
    categories: Sequence[Category]
    """All that have videos."""
    shown: Sequence[Category]
    """Those whose dearest and cheapest videos are shown."""
    strips: Mapping[int, Strip]
    """Frames of these videos, by index."""
    images: Mapping[str, str]
    """Paths of the figures ``options`` and ``compute``, PNG."""


def write_page(path: str, page: Page) -> None:
    """Write a page to a file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_REPORT),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['percent'] = lambda share: f'{100 * share:.1f} %'
    style, script = ((_REPORT / name).read_text('utf-8') for name in ('page.css', 'page.js'))
    folder = common_folder([source.name for source in page.videos.sources])
    text = environment.get_template('page.html').render(
        page=page,
        style=style,
        script=script,
        policy=_security_policy(style, script),
        folder=folder,
        data=embedded_json(table(page, folder)),
        summary=_summary(page.videos),
        images={name: _data_uri('png', Path(file).read_bytes()) for name, file in _files(page)},
        strips={index: _strip(strip) for index, strip in page.strips.items()},
        numbers={category.label: category.videos for category in page.categories},
    )
    # Names of files may be bytes that are no UTF-8.
    with open(path, 'w', encoding='utf-8', errors='replace', newline='\n') as file:
        file.write(text)


def table(page: Page, folder: str) -> dict[str, Any]:
    """The table of the videos as columns, for the script of the page.

    Args:
        page: What the page shows.
        folder: Folder of all videos, which is left out of their names.
    """
    videos = page.videos
    start = len(folder) + 1 if folder else 0
    ratio, gmacs, overhead = (column.tolist() for column in _rounded(videos.compute.T))
    return {
        'classes': list(page.classes),
        'video': [source.name[start:] for source in videos.sources],
        'labels': [source.labels for source in videos.sources],
        'predicted': videos.predicted.tolist(),
        'score': _rounded(videos.score).tolist(),
        'correct': _rounded(videos.correct).tolist(),
        'ratio': ratio,
        'gmacs': gmacs,
        'overhead': overhead,
    }


def embedded_json(value: Any) -> str:
    """JSON for a script element: ASCII, and nothing in it that HTML could take for a tag."""
    text = json.dumps(value, allow_nan=False, separators=(',', ':'))
    for character in '<>&':
        text = text.replace(character, f'\\u{ord(character):04x}')
    return text


def common_folder(names: Sequence[str]) -> str:
    """The folder that all files are in, '' where they share none."""
    try:
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # some are absolute, some are not
        return ''
    return folder if all(name.startswith(f'{folder}/') for name in names) else ''


def _rounded(values: np.ndarray) -> np.ndarray:
    return values.round(6)


def _summary(videos: Videos) -> dict[str, Any]:
    labelled = videos.correct >= 0
    ratio, gmacs, overhead = videos.compute.T
    return {
        'accuracy': float(videos.correct[labelled].mean()) if labelled.any() else None,
        'several': not videos.detections and any(len(s.labels) > 1 for s in videos.sources),
        'mean': float(ratio.mean()),
        'low': float(ratio.min()),
        'high': float(ratio.max()),
        'gmacs': f'{gmacs.mean():.4g}',
        'overhead': f'{overhead.mean():.2g}',
    }


def _files(page: Page) -> list[tuple[str, str]]:
    return [(name, page.images[name]) for name in ('options', 'compute')]


def _strip(strip: Strip) -> dict[str, str]:
    if strip.image is None:
        return {'uri': '', 'problem': strip.problem}
    bgr = cv2.cvtColor(strip.image, cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return {'uri': _data_uri('jpeg', content.tobytes()), 'problem': ''}


def _data_uri(kind: str, content: bytes) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def _security_policy(style: str, script: str) -> str:
    """Only this style and this script, by their hashes, and images inside the page."""
    hashes = [
        base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (style, script)
    ]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )
