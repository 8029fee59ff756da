# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Pages of made-up tests."""

import numpy as np
import torch

from policy_report import figures
from policy_report.categories import summarise_categories
from policy_report.page import Page, write_page
from policy_report.strips import Strip
from policy_report.videos import read_videos

from .predictions import HOSTILE, SOURCES, detections, videos

CLASSES = ['walk', HOSTILE, 'run']
NAMES = [f'folder/{HOSTILE}.mp4', *(f'folder/video{i}.mp4' for i in range(1, 4))]
ROWS = [(1, 1, 0.9), (1, 2, 0.3), (0, 0, 0.7), (0, 1, 0.5)]


def parts(found=None):
    """What a page shows of some videos, by default of two categories of two each."""
    found = videos(ROWS, NAMES) if found is None else found
    categories = summarise_categories(found, CLASSES)
    red = np.full((16, 64, 3), (200, 0, 0), np.uint8)
    wanted = sorted({index for c in categories for index in (c.most, c.least)})
    strips = {index: Strip(red) for index in wanted}
    if 3 in strips:
        strips[3] = Strip(None, 'missing on disk')
    return Page(f'Test {HOSTILE}', found, CLASSES, categories, categories, strips, {})


def detection_parts():
    """What a page shows of two clips: two of three actions are found in the first, none after."""
    samples = detections()
    samples[0]['pred_instances']['scores'][1] = torch.tensor([0.0, 0.3, 0.2, 0.1])  # of action 2
    found, classes = read_videos(samples, SOURCES), ['background', 'walk', HOSTILE, 'run']
    categories = summarise_categories(found, classes)
    strips = {index: Strip(None, 'missing on disk') for index in range(2)}
    return Page('Detection', found, classes, categories, categories, strips, {})


def write(folder, page=None):
    """Writes a page with its figures; its path and its text."""
    page = parts() if page is None else page
    layers = {f'layer{i}': (3, 3) for i in range(len(page.videos.chosen))}
    drawn = {
        'options': figures.draw_options(page.videos.chosen, layers),
        'compute': figures.draw_compute(page.videos),
    }
    images = {name: str(folder / f'{name}.png') for name in drawn}
    for name, figure in drawn.items():
        figure.savefig(images[name], dpi=40)
    path = folder / 'index.html'
    write_page(str(path), page._replace(images=images))
    return path, path.read_text('utf-8')
