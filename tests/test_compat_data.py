# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Mended releases: every decoder names a broken video, and names that NumPy 2 lacks are there."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import mmaction
import numpy as np
import pytest
from mmaction.datasets.transforms import loading

from vared2_mmaction import compat
from vared2_mmaction.errors import FileError

from .videos import write_video


def test_names_that_numpy_lacks():
    from mmaction.datasets.transforms import PoseCompact
    from mmaction.evaluation.functional.accuracy import average_recall_at_avg_proposals
    from mmaction.evaluation.metrics.multimodal_metric import RetrievalRecall

    keypoint = np.array([[[[4.0, 8.0], [12.0, 20.0]]]])
    compact = PoseCompact(padding=0.0, threshold=1, allow_imgpad=False)
    results = {'keypoint': keypoint.copy(), 'img_shape': (32, 32)}
    assert compact(results)['img_shape'] == (12, 8)  # from 8 to 20, from 4 to 12

    proposals = {'v': np.array([[0.0, 10.0, 0.9], [20.0, 30.0, 0.8]])}
    truth = {'v': np.array([[0.0, 10.0]])}
    _, recall, number, area = average_recall_at_avg_proposals(truth, proposals, 2, 2)
    trapezoids = np.diff(number) * (recall[1:] + recall[:-1]) / 2
    assert area == pytest.approx(100 * trapezoids.sum() / number[-1])
    assert area > 0

    found = RetrievalRecall.calculate([[0, 1], [2, 1]], [[1], [0]], (1, 2), True, True)
    assert [float(recall) for recall in found] == [0.0, 50.0]


def test_frames_are_scaled_by_their_short_side(tmp_path):
    """Raises without ``np.Inf``."""
    from mmaction.utils import frame_extract

    video = write_video(tmp_path / 'video.mp4', 3, size=(64, 48))
    _, frames = frame_extract(video, short_side=24, out_dir=str(tmp_path / 'frames'))
    assert [frame.shape for frame in frames] == [(24, 32, 3)] * 3


def test_nobody_else_gets_old_names_of_numpy():
    for name in ('Inf', 'NAN'):
        assert hasattr(np, name) == (np.lib.NumpyVersion(np.__version__) < '2.0.0')
    with pytest.raises(AttributeError, match='nothing'):
        getattr(compat._NumpyWithOldNames('numpy'), 'nothing')  # noqa: B009
    assert compat._NumpyWithOldNames('numpy').float32 is np.float32


def test_mmaction_uses_no_other_name_that_numpy_lacks():
    """What a recognizer or detector can reach: everything but the modules that are mended."""
    mended = {f'{name.replace(".", "/")}.py' for name in compat._WITH_OLD_NAMES}
    package = Path(mmaction.__file__).parent
    for path in package.rglob('*.py'):
        name = path.relative_to(package).as_posix()
        used = set(re.findall(r'\bnp\.([A-Za-z]\w*)', path.read_text('utf-8')))
        lacking = {word for word in used if not hasattr(np, word)}
        if name in mended:
            assert lacking <= set(compat._NEW_NAMES)
        elif not name.startswith('.mim/'):
            assert not lacking, name


class _Container:
    """Of PyAV: opens, and fails at the first frame."""

    streams = SimpleNamespace(video=[SimpleNamespace(frames=4, codec_context=SimpleNamespace())])

    def decode(self, video):
        raise ValueError('Invalid data found when processing input')

    def demux(self, stream):
        raise ValueError('Invalid data found when processing input')


def fails(*_):
    raise ValueError('Invalid data found when processing input')


@pytest.mark.parametrize('kind', ['no video', 'cut', 'gone', 'empty'])
def test_opencv_names_a_broken_video(kind, tmp_path):
    path = tmp_path / 'broken.mp4'
    if kind != 'gone':
        write_video(path, 20)
        whole = path.read_bytes()
        path.write_bytes({'no video': b'text' * 99, 'cut': whole[:900], 'empty': b''}[kind])
    with pytest.raises(FileError, match=r"broken\.mp4' cannot be opened: .* OpenCV can decode"):
        loading.OpenCVInit()({'filename': str(path)})


def test_opencv_names_a_video_whose_frames_are_gone(tmp_path):
    path = tmp_path / 'cut.avi'
    write_video(path, 60, size=(64, 100), codec='MJPG')
    results = loading.OpenCVInit()({'filename': str(path)})
    whole = loading.OpenCVDecode()({**results, 'frame_inds': np.array([0, 59])})
    assert len(whole['imgs']) == 2
    results = loading.OpenCVInit()({'filename': str(path)})
    results['video_reader'] = type('Reader', (), {'__getitem__': fails})()
    with pytest.raises(FileError, match=r"cut\.avi' cannot be decoded: .* OpenCV can decode"):
        loading.OpenCVDecode()({**results, 'frame_inds': np.array([0, 59])})


@pytest.mark.parametrize('step', ['opened', 'decoded', 'motion'])
@pytest.mark.parametrize('library', ['PyAV', 'PIMS'])
def test_other_decoders_name_a_broken_video(library, step, tmp_path, monkeypatch):
    (tmp_path / 'broken.mp4').write_bytes(b'text')
    monkeypatch.setitem(sys.modules, 'av', SimpleNamespace(open=fails))
    monkeypatch.setitem(sys.modules, 'pims', SimpleNamespace(PyAVReaderIndexed=fails))
    results = {'filename': str(tmp_path / 'broken.mp4'), 'frame_inds': np.arange(2)}
    container = _Container() if library == 'PyAV' else type('R', (), {'__getitem__': fails})()
    kind = {'opened': 'Init', 'decoded': 'Decode', 'motion': 'DecodeMotionVector'}[step]
    if step == 'motion' and library == 'PIMS':
        return  # it has none
    if step != 'opened':
        results['video_reader'] = container
    message = rf"broken\.mp4' cannot be \w+: .* {library} can decode \(Invalid data"
    with pytest.raises(FileError, match=message):
        getattr(loading, f'{library}{kind}')()(results)


@pytest.mark.parametrize(('library', 'package'), [('PyAV', 'av'), ('PIMS', 'pims')])
def test_a_missing_decoder_is_not_taken_for_a_broken_video(library, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=package):
        getattr(loading, f'{library}Init')()({'filename': 'video.mp4'})
