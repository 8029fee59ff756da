# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The table sorts, filters and turns its pages in a real browser, if there is one."""

import json
import re
import shutil
import subprocess

import pytest

from .pages import CLASSES, detection_parts, parts, write
from .predictions import HOSTILE, videos

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f'needs a browser, one of {BROWSERS}')

NUMBER = 130
ROWS = [
    (i % 3, i % 3 if i % 4 else (i + 1) % 3, round(0.2 + (i * 37 % NUMBER) / 200, 6))
    for i in range(NUMBER)
]
NAMES = [f'folder/video{i}.mp4' for i in range(NUMBER)]
# Calls of `say` are what the test sees: cells of the table's first column, and what stands below.
DRIVER = """
const out = {};
const say = (name) => out[name] = {
  videos: [...document.querySelectorAll('#rows tr')].map((row) => row.cells[0].textContent),
  answers: [...document.querySelectorAll('#rows tr')].map((row) => row.cells[4].textContent),
  computes: [...document.querySelectorAll('#rows tr')].map((row) => row.cells[5].textContent),
  count: document.getElementById('count').textContent,
  where: document.getElementById('where').textContent,
  sorted: [...document.querySelectorAll('th')].map((head) => head.ariaSort).join(),
};
const click = (selector) => document.querySelector(selector).click();
const set = (id, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event('input', { bubbles: true }));
};
say('start');
click('th[data-key=ratio] button'); say('rising');
click('th[data-key=video] button'); say('names');
click('#next'); say('next');
click('#last'); say('last');
set('size', '200'); say('long');
set('category', '1'); say('category');
set('correct', '0'); say('wrong');
set('text', 'VIDEO1'); say('text');
set('text', 'no such video'); say('nothing');
click('[data-category="2"]'); say('shown');
document.title = 'driven';
document.body.replaceChildren(JSON.stringify(out));
"""


def dump_dom(path):
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
    profile = f'--user-data-dir={path.parent / "profile"}'
    done = subprocess.run(
        [*command, profile, f'file://{path}'],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def drive(folder, page, driver):
    """What a driver saw of a page: its answers by name."""
    path, text = write(folder, page)
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', text)
    assert free != text  # or the driver would not be let in
    path.write_text(free.replace('</body>', f'<script>{driver}</script></body>'), 'utf-8')
    dom = dump_dom(path)
    assert '<title>driven</title>' in dom
    body = re.search(r'<body>(\{.*?\})\s*</body>', dom, re.DOTALL)
    return json.loads(body[1])


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """What the table shows after each step of the driver."""
    return drive(tmp_path_factory.mktemp('driven'), parts(videos(ROWS, NAMES)), DRIVER)


def expected(rows):
    return [f'video{i}.mp4' for i in rows]


def test_the_page_runs_under_its_policy_and_no_name_does(tmp_path):
    dom = dump_dom(write(tmp_path)[0])
    assert dom.count('<tr>') == 1 + 4
    assert '<title>owned' not in dom
    assert '4 of 4 videos' in dom
    assert HOSTILE.partition('"')[0].replace('<', '&lt;').replace('>', '&gt;') in dom


def test_the_dearest_video_comes_first(seen):
    order = sorted(range(NUMBER), key=lambda i: -ROWS[i][2])
    assert seen['start']['videos'] == expected(order[:50])
    assert seen['start']['computes'][0] == f'{100 * ROWS[order[0]][2]:.1f} %'
    assert seen['start']['count'] == '130 of 130 videos'
    assert seen['start']['where'] == 'Page 1 of 3'
    assert seen['rising']['videos'] == expected(order[::-1][:50])


def test_names_are_sorted_by_their_numbers(seen):
    assert seen['names']['videos'] == expected(range(50))
    assert seen['names']['sorted'] == 'ascending' + ',none' * 7


def test_pages_are_turned(seen):
    assert seen['next']['videos'] == expected(range(50, 100))
    assert seen['last']['videos'] == expected(range(100, 130))
    assert seen['last']['where'] == 'Page 3 of 3'
    assert seen['long']['videos'] == expected(range(130))


def test_filters_work_together(seen):
    category = [i for i, row in enumerate(ROWS) if row[0] == 1]
    wrong = [i for i in category if ROWS[i][1] != 1]
    text = [i for i in wrong if str(i).startswith('1')]
    assert 0 < len(text) < len(wrong) < len(category) < NUMBER
    assert seen['category']['videos'] == expected(category)
    assert seen['wrong']['videos'] == expected(wrong)
    assert seen['text']['videos'] == expected(text)
    assert seen['text']['count'] == f'{len(text)} of 130 videos'
    assert seen['nothing']['videos'] == []


def test_a_category_is_shown_in_the_table(seen):
    assert CLASSES[2] == 'run'
    assert seen['shown']['videos'] == expected(i for i, row in enumerate(ROWS) if row[0] == 2)


def test_shares_of_actions_found_are_shown_and_filtered(tmp_path):
    shown = drive(tmp_path, detection_parts(), DRIVER)
    assert shown['start']['videos'] == ['a.mp4 @ 8', 'a.mp4 @ 7']
    assert shown['start']['answers'] == ['\u2717', '67 %']
    assert shown['category']['videos'] == ['a.mp4 @ 7']  # action 1 is annotated in one of them
    assert shown['wrong']['videos'] == ['a.mp4 @ 7']
