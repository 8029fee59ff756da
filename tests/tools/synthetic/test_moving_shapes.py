# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The moving-shapes videos are what their lists and ``meta.json`` promise."""

import json
import runpy
from collections import Counter
from pathlib import Path

import decord
import numpy as np
import pytest

from synthetic import moving_shapes, scenes
from synthetic.motions import MOTIONS
from synthetic.moving_shapes import SPLITS, MovingShapes, make_moving_shapes

SMALL = MovingShapes(train=32, val=14, test=20, size=64, frames=12, repeats=1.0)
SUBJECT_MOVES = [
    name for name in MOTIONS if name.startswith(('moves', 'rotates', 'grows', 'shrinks'))
]
APPEARS = [name for name in MOTIONS if name.startswith('appears')]


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'moving_shapes'
    assert make_moving_shapes(out, SMALL, workers=2) == 32 + 14 + 20
    return out


def read_list(path: Path) -> list[tuple[str, int]]:
    pairs = (line.rsplit(' ', 1) for line in path.read_text().splitlines())
    return [(video, int(label)) for video, label in pairs]


def read_videos(out: Path) -> dict[str, dict]:
    return json.loads((out / 'meta.json').read_text())['videos']


def decode(path: Path) -> np.ndarray:
    """Frames of shape ``(T, H, W, 3)``."""
    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(range(len(reader))).asnumpy()


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob('*') if p.is_file()}


def clip_seed(index: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(7, spawn_key=(0, index))


def test_files_do_not_depend_on_the_number_of_workers(data: Path, tmp_path: Path) -> None:
    make_moving_shapes(tmp_path / 'again', SMALL, workers=1)
    assert contents(tmp_path / 'again') == contents(data)


def test_another_seed_gives_other_videos() -> None:
    one, other = (
        scenes.render('grows', np.random.SeedSequence(seed, spawn_key=(0, 0)), 8, 48)
        for seed in (0, 1)
    )
    assert np.abs(one.astype(int) - other).mean() > 2 * scenes.NOISE


def test_no_two_videos_share_a_seed_or_a_scene(data: Path) -> None:
    videos = read_videos(data)
    assert len({json.dumps(facts['seed']) for facts in videos.values()}) == len(videos)
    frames = np.stack([decode(data / path)[0, ::2, ::2, 1].ravel() for path in videos])
    frames = frames.astype(np.float32)
    distance = np.abs(frames[:, None] - frames).mean(-1) + 255 * np.eye(len(videos))
    assert distance.min() > scenes.NOISE


@pytest.mark.parametrize('split', SPLITS)
def test_classes_are_balanced_and_named(data: Path, split: str) -> None:
    pairs = read_list(data / f'{split}.txt')
    classes = (data / 'classes.txt').read_text().splitlines()
    counts = Counter(label for _, label in pairs)
    assert len(pairs) == getattr(SMALL, split)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert set(counts) == set(range(len(classes)))
    videos = read_videos(data)
    assert [videos[path]['class_name'] for path, _ in pairs] == [classes[c] for _, c in pairs]


def test_decord_decodes_every_video_as_promised(data: Path) -> None:
    paths = [path for split in SPLITS for path, _ in read_list(data / f'{split}.txt')]
    assert {decode(data / path).shape for path in paths} == {(12, 64, 64, 3)}
    assert len(paths) == len(list(data.rglob('*.mp4')))
    assert decord.VideoReader(str(data / paths[0])).get_avg_fps() == SMALL.fps


def test_compression_keeps_the_frames(data: Path) -> None:
    [path, facts] = next(iter(read_videos(data).items()))
    seed = np.random.SeedSequence(facts['seed']['entropy'], spawn_key=facts['seed']['spawn_key'])
    drawn = scenes.render(facts['class_name'], seed, SMALL.frames, SMALL.size)[..., ::-1]
    # The noise is the first that a codec drops, and colour is kept at half the resolution.
    assert np.abs(decode(data / path).astype(int) - drawn).mean() < 2 * scenes.NOISE


def test_still_clips_stand_still_and_all_others_move(data: Path) -> None:
    still, moving = [], []
    for path, facts in read_videos(data).items():
        grey = decode(data / path).astype(np.float32).mean(-1)
        # Averages over frames and over pixels, and the larger half of the clip, leave little noise.
        change = np.abs(grey[-4:].mean(0) - grey[:4].mean(0))
        change = change.reshape(16, 4, 16, 4).mean((1, 3)).max()
        (still if facts['still'] else moving).append(change)
    assert still
    assert max(still) < min(moving)


def test_still_is_said_of_clips_with_nothing_moving(data: Path) -> None:
    for facts in read_videos(data).values():
        stays = facts['class_name'].startswith('shows') and facts['background'] == 'still'
        assert facts['still'] == stays


@pytest.mark.parametrize('names', [SUBJECT_MOVES, APPEARS])
def test_first_frame_of_a_motion_class_does_not_depend_on_the_class(names: list[str]) -> None:
    for index in range(5):
        first = [scenes.render(name, clip_seed(index), 12, 48)[0] for name in names]
        assert all(np.array_equal(first[0], other) for other in first[1:])


def test_classes_of_one_event_order_differ_between_first_and_last_frame() -> None:
    for index in range(5):
        left, right = (scenes.render(name, clip_seed(index), 12, 48) for name in APPEARS)
        np.testing.assert_array_equal(left[[0, -1]], right[[0, -1]])
        assert (left != right).any()


def test_motions_do_what_their_names_say() -> None:
    pose = scenes.Pose(x=20.0, y=24.0, angle=10.0, radius=9.0)
    for index in range(20):

        def last_minus_first(name: str, field: str, index: int = index) -> float:
            [track] = MOTIONS[name](np.random.default_rng(index), pose, 24, 48)
            return getattr(track, field)[-1] - getattr(track, field)[0]

        assert last_minus_first('moves_left', 'x') < 0
        assert last_minus_first('moves_right_slowly', 'x') > 0
        slow, fast = 'moves_right_slowly', 'moves_right_fast'
        assert 1.3 * last_minus_first(slow, 'x') < last_minus_first(fast, 'x')
        assert last_minus_first('rotates_clockwise', 'angle') > 0
        assert last_minus_first('rotates_counterclockwise', 'angle') < 0
        assert last_minus_first('grows', 'radius') > 0 > last_minus_first('shrinks', 'radius')


def test_clips_differ_in_how_often_they_show_their_motion() -> None:
    drawn = [scenes.draw_repeats(clip_seed(index), 4.0) for index in range(200)]
    assert min(drawn) >= 1
    assert max(drawn) <= 4
    assert np.mean(np.array(drawn) < 2) == pytest.approx(0.5, abs=0.1)


def test_motions_that_repeat_are_faster() -> None:
    often, faster = [], []
    for index in range(20):
        plain, repeated = (
            scenes.render('moves_right_fast', clip_seed(index), 32, 64, most).astype(float)
            for most in (1.0, 5.0)
        )
        np.testing.assert_array_equal(plain[0], repeated[0])
        change, plainly = (np.abs(np.diff(c, axis=0)).mean() for c in (repeated, plain))
        often.append(scenes.draw_repeats(clip_seed(index), 5.0))
        faster.append(change / plainly)
    assert np.corrcoef(often, faster)[0, 1] > 0.7


def test_sets_tell_their_repeats_and_older_ones_have_none(data: Path, tmp_path: Path) -> None:
    assert not any('repeats' in facts for facts in read_videos(data).values())
    few = MovingShapes(train=4, val=2, test=2, size=32, frames=8, repeats=4.0)
    make_moving_shapes(tmp_path / 'speeds', few)
    repeats = [facts['repeats'] for facts in read_videos(tmp_path / 'speeds').values()]
    assert len(set(repeats)) == 8
    assert 1 <= min(repeats) <= max(repeats) <= 4
    meta = json.loads((data / 'meta.json').read_text())
    assert meta['arguments'].pop('repeats') == 1
    (data / 'meta.json').write_text(json.dumps(meta))
    assert make_moving_shapes(data, SMALL) == 0


def test_complete_set_is_left_alone_and_a_deleted_video_is_written_again(tmp_path: Path) -> None:
    few = MovingShapes(train=4, val=2, test=2, size=32, frames=8)
    make_moving_shapes(tmp_path, few)
    before = contents(tmp_path)
    assert make_moving_shapes(tmp_path, few) == 0
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.mp4')}
    lost = sorted(times)[3]
    lost.unlink()
    assert make_moving_shapes(tmp_path, few, workers=2) == 1
    assert contents(tmp_path) == before
    rewritten = [path for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert rewritten == [lost]


def test_interrupted_set_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = MovingShapes(train=4, val=2, test=2, size=32, frames=8)
    render = scenes.render

    def fail_at_the_end(name: str, seed: np.random.SeedSequence, *args: int) -> np.ndarray:
        if seed.spawn_key == (2, 1):
            raise KeyboardInterrupt
        return render(name, seed, *args)

    with monkeypatch.context() as patch:
        patch.setattr(moving_shapes, 'render', fail_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            make_moving_shapes(tmp_path / 'cut', few)
    assert not (tmp_path / 'cut' / 'meta.json').exists()
    assert make_moving_shapes(tmp_path / 'cut', few) == 1
    make_moving_shapes(tmp_path / 'whole', few)
    assert contents(tmp_path / 'cut') == contents(tmp_path / 'whole')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(train=0), '--train: expected at least 1 video, got 0'),
        (dict(size=30), '--size: expected a multiple of 32, from 32 to 512, got 30'),
        (dict(size=72), '--size: expected a multiple of 32'),
        (dict(frames=4), '--frames: expected 8 to 1000 frames, got 4'),
        (dict(fps=0), '--fps: expected 1 to 240'),
        (dict(repeats=0.5), '--repeats: expected 1 to 100 times, got 0.5'),
        (dict(seed=-1), '--seed: expected a number that is not negative, got -1'),
        (dict(classes=('grows', 'sings')), "--classes: expected names out of .*, got 'sings'"),
        (dict(classes=('grows', 'grows')), '--classes: expected every name once'),
        (dict(classes=('grows',)), '--classes: expected at least two'),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovingShapes(**arguments)


def test_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    few = MovingShapes(train=2, val=1, test=1, size=32, frames=8)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
    with pytest.raises(ValueError, match=r'OUT: expected a new or empty folder'):
        make_moving_shapes(tmp_path / 'mine', few)
    make_moving_shapes(tmp_path / 'set', few)
    other = MovingShapes(train=2, val=1, test=1, size=64, frames=8)
    with pytest.raises(ValueError, match=r'other arguments: size 32 \(asked for: 64\)'):
        make_moving_shapes(tmp_path / 'set', other)


def test_command_names_a_bad_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[3] / 'tools' / 'make_moving_shapes.py'
    monkeypatch.setattr('sys.argv', [str(script), str(tmp_path / 'out'), '--size', '31'])
    with pytest.raises(SystemExit, match='2'):
        runpy.run_path(str(script), run_name='__main__')
    assert '--size: expected a multiple of 32' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
