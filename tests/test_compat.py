# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Each defect of the OpenMMLab releases is mended."""

import multiprocessing
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import decord
import mmaction
import numpy as np
import pytest
import torch
from mmaction.datasets.transforms.loading import DecordDecode, DecordInit, RawFrameDecode
from mmaction.engine.hooks import VisualizationHook
from mmaction.structures import ActionDataSample
from mmaction.utils import dependency
from mmaction.visualization import ActionVisualizer
from mmengine.dist import utils as dist_utils
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from vared2_mmaction import compat

from .videos import write_video

HAS_DRN = (Path(mmaction.__file__).parent / 'models' / 'localizers' / 'drn').exists()
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')


@pytest.mark.skipif(HAS_DRN, reason='this release of mmaction2 has DRN')
@pytest.mark.parametrize(
    ('names', 'multimodal'), [('', False), ('apply_chunking_to_forward', True)]
)
def test_multimodal_models_of_another_transformers_are_left_out(
    names, multimodal, tmp_path, monkeypatch
):
    (tmp_path / 'transformers').mkdir()
    (tmp_path / 'transformers' / '__init__.py').touch()
    (tmp_path / 'transformers' / 'modeling_utils.py').write_text(names and f'{names} = None')
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition('.')[0] == 'transformers']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
    compat._leave_out_multimodal_models()
    assert multimodal == dependency.WITH_MULTIMODAL
    for name in [name for name in sys.modules if name.partition('.')[0] == 'transformers']:
        monkeypatch.delitem(sys.modules, name)


def test_missing_localizer_says_what_to_do():
    from mmaction.models.localizers import DRN

    with pytest.raises(ImportError, match='install mmaction2 from its repository'):
        DRN()


@pytest.fixture
def stored(tmp_path):
    """Saves an object and returns the file's path."""

    def stored(content):
        torch.save(content, tmp_path / 'checkpoint.pth')
        return tmp_path / 'checkpoint.pth'

    return stored


@pytest.mark.parametrize('kind', [float, int, np.float32, np.float64, np.int64, torch.tensor])
def test_checkpoint_of_the_trainer_loads(kind, stored):
    hub = MessageHub('checkpoint')
    for value in (1, 3):
        hub.update_scalar('train/loss', kind(value))
    hub.update_info('epoch', 2)
    model = nn.Linear(2, 3)
    path = stored(
        {
            'meta': {'epoch': 2, 'cfg': 'x = 1', 'dataset_meta': {'classes': ('a', 'b')}},
            'state_dict': model.state_dict(),
            'message_hub': hub.state_dict(),
            'optimizer': torch.optim.AdamW(model.parameters()).state_dict(),
        }
    )
    checkpoint = torch.load(path, weights_only=True)
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.mean() == 2
    assert history.current() == 3
    torch.testing.assert_close(checkpoint['state_dict'], model.state_dict())


class Calls:
    """Asks whoever loads it to call a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize('load', [torch.load, lambda path: load_checkpoint(nn.Linear(1, 1), path)])
@pytest.mark.parametrize(
    ('function', 'name'),
    [(os.system, r'\w+\.system'), (eval, 'eval'), (exec, 'exec')],
)
def test_what_a_checkpoint_may_not_call_is_refused_by_name(load, function, name, stored, tmp_path):
    touched = tmp_path / 'touched'
    code = f'touch {touched}' if function is os.system else f'open({str(touched)!r}, "w")'
    path = stored({'state_dict': {}, 'message_hub': Calls(function, code)})
    with pytest.raises(pickle.UnpicklingError, match=name):
        load(str(path))
    assert not touched.exists()


@pytest.mark.parametrize(
    ('owner', 'name'),
    [
        (HistoryBuffer, 'update'),
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, '__globals__'),
        (np.ndarray, 'tofile'),
        (np.dtype, 'max'),
    ],
)
def test_getattr_gives_statistics_of_histories_only(owner, name, stored):
    with pytest.raises(ValueError, match=f'attribute {name!r} of .*{owner.__name__}'):
        torch.load(stored(Calls(getattr, owner, name)))


def test_getattr_gives_statistics_of_histories(stored):
    assert torch.load(stored(Calls(getattr, HistoryBuffer, 'mean'))) is HistoryBuffer.mean


def test_video_that_cannot_be_opened_is_named(tmp_path):
    path = tmp_path / 'broken.mp4'
    path.write_bytes(b'not a video')
    with pytest.raises(RuntimeError, match=r"broken\.mp4' cannot be opened"):
        DecordInit()({'filename': str(path)})


def test_video_that_cannot_be_decoded_is_named():
    class Reader:
        def get_batch(self, indices):
            raise ValueError('frame 3 is damaged')

    results = {'filename': 'damaged.mp4', 'video_reader': Reader(), 'frame_inds': np.arange(4)}
    with pytest.raises(RuntimeError, match=r"damaged\.mp4' cannot be decoded.*frame 3"):
        DecordDecode()(results)


@pytest.mark.parametrize('content', [b'', b'no image'])
@pytest.mark.parametrize(('modality', 'name'), [('RGB', '{:05}.jpg'), ('Flow', '{}_{:05}.jpg')])
def test_frames_that_cannot_be_decoded_are_named(modality, name, content, tmp_path):
    results = {'frame_dir': str(tmp_path), 'filename_tmpl': name, 'modality': modality}
    decode = RawFrameDecode()
    for axis in 'xy':
        (tmp_path / f'{axis}_00001.jpg').write_bytes(content)
    (tmp_path / '00001.jpg').write_bytes(content)
    with pytest.raises(
        RuntimeError, match=f"frames of '{tmp_path}' cannot be decoded: expected im"
    ):
        decode({**results, 'frame_inds': np.array([1])})
    with pytest.raises(FileNotFoundError, match=r'00002\.jpg'):
        decode({**results, 'frame_inds': np.array([2])})


def test_missing_decord_is_not_taken_for_a_broken_video(monkeypatch):
    monkeypatch.setitem(sys.modules, 'decord', None)
    with pytest.raises(ImportError, match='decord'):
        DecordInit()({'filename': 'video.mp4'})


def test_mending_twice_names_a_video_once(tmp_path):
    compat._name_undecodable_videos()
    (tmp_path / 'broken.mp4').write_bytes(b'not a video')
    with pytest.raises(RuntimeError) as caught:
        DecordInit()({'filename': str(tmp_path / 'broken.mp4')})
    assert str(caught.value).count('cannot be opened') == 1


def test_cut_off_avi_does_not_end_the_process(tmp_path):
    """decord dies of its first half, if it is given as bytes."""
    path = tmp_path / 'cut.avi'
    write_video(path, 60, size=(64, 100), codec='MJPG')
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < DecordInit()({'filename': str(path)})['total_frames'] < 60


def test_videos_open_as_their_bytes_do(tmp_path):
    path = write_video(tmp_path / 'video.mp4', 20)
    ours, indices = DecordInit()({'filename': path})['video_reader'], [0, 7, 19]
    with open(path, 'rb') as file:
        stock = decord.VideoReader(file)
    assert (ours.get_batch(indices).asnumpy() == stock.get_batch(indices).asnumpy()).all()


def test_names_of_videos_may_lack_the_suffix(tmp_path):
    write_video(tmp_path / 'video.mp4', 5)
    name = str(tmp_path / 'video')
    assert DecordInit()({'filename': name})['total_frames'] == 5
    (tmp_path / 'plain').write_bytes((tmp_path / 'video.mp4').read_bytes())
    assert DecordInit()({'filename': str(tmp_path / 'plain')})['total_frames'] == 5
    with pytest.raises(RuntimeError, match="gone.mp4' cannot be opened.*no such file"):
        DecordInit()({'filename': str(tmp_path / 'gone.mp4')})


class Recorder:
    """A visualizer that keeps what it is asked to draw."""

    def __init__(self):
        self.drawn = []
        self.shown = []

    def add_datasample(self, name, video, data_sample, step, **options):
        self.drawn.append((name, video, data_sample, options))
        return list(video)

    def show(self, image, name, pause):
        self.shown.append(image)


@pytest.fixture
def hook(tmp_path):
    def hook(**options):
        ActionVisualizer.get_instance('compat', vis_backends=None, save_dir=str(tmp_path))
        hook = VisualizationHook(enable=True, **options)
        hook._visualizer = Recorder()
        return hook

    return hook


def draw(hook, sizes=(2,), shape=(1, 3, 4, 6, 5), **names):
    for i, size in enumerate(sizes):
        inputs = [torch.randint(256, shape, dtype=torch.uint8) for _ in range(size)]
        samples = []
        for _ in inputs:
            sample = ActionDataSample(metainfo=names).set_gt_label(1)
            samples.append(sample.set_pred_label(0).set_pred_score(torch.tensor([0.7, 0.3])))
        hook.after_test_iter(None, i, {'inputs': inputs}, samples)
    return hook._visualizer.drawn, inputs


@pytest.mark.parametrize('shape', [(2, 3, 4, 6, 5), (4, 3, 6, 5)])
def test_drawn_are_the_frames_of_the_first_view(shape, hook):
    drawn, inputs = draw(hook(interval=1), shape=shape)
    frames = inputs[1][0].transpose(0, 1) if len(shape) == 5 else inputs[1]
    _, video, _, _ = drawn[1]
    assert video.shape == (4, 6, 5, 3)
    assert (video == frames.permute(0, 2, 3, 1).numpy()).all()


def test_drawn_are_label_and_prediction(hook):
    ((_, _, sample, _),), _ = draw(hook(interval=1), sizes=(1,))
    assert sample.gt_labels.tolist() == [1]
    assert sample.pred_labels.item.tolist() == [0]
    assert sample.pred_labels.score.tolist() == pytest.approx([0.7, 0.3])


def test_every_interval_th_sample_is_drawn_and_saved(hook):
    drawn, _ = draw(hook(interval=2, out_dir='frames'), sizes=(3, 3, 1))
    assert [name for name, *_ in drawn] == ['0', '2', '4', '6']
    paths = [options['out_path'] for *_, options in drawn]
    assert paths == [os.path.join('frames', f'{i}_0') for i in (0, 2, 4, 6)]


def test_drawings_bear_the_name_of_the_video(hook):
    drawn, _ = draw(hook(interval=1), sizes=(1,), filename='folder/cat.mp4')
    assert drawn[0][0] == 'cat.mp4'


def test_every_frame_is_shown(hook):
    hook = hook(interval=1, show=True)
    draw(hook, sizes=(1,))
    assert len(hook._visualizer.shown) == 4


def test_clips_that_are_no_pictures_are_refused(hook):
    with pytest.raises(ValueError, match=r'RGB.*\(1, 17, 4, 6, 5\)'):
        draw(hook(interval=1), shape=(1, 17, 4, 6, 5))


@on_cpu
def test_nccl_without_a_gpu_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"backend='nccl'.*backend=gloo"):
        dist_utils._init_dist_pytorch('nccl')


@pytest.fixture
def group(monkeypatch, tmp_path):
    """A process group of one process, as tools/dist_train.sh would start it."""
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('LOCAL_RANK', '0')
    address = f'file://{tmp_path / "group"}'
    dist_utils._init_dist_pytorch('gloo', init_method=address, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@on_cpu
@pytest.mark.usefixtures('group')
def test_gloo_starts_without_a_gpu():
    assert torch.distributed.get_backend() == 'gloo'


# MMEngine hands device_ids=[LOCAL_RANK] to DistributedDataParallel, which refuses it on CPU.
@on_cpu
@pytest.mark.usefixtures('group')
@pytest.mark.parametrize('config', [None, {'type': 'MMDistributedDataParallel'}])
def test_models_are_wrapped_without_a_gpu(config):
    runner = SimpleNamespace(distributed=True, cfg={})
    model = Runner.wrap_model(runner, config, nn.Linear(2, 3))
    assert model(torch.ones(1, 2)).shape == (1, 3)


def test_an_action_without_boxes_has_no_average_precision():
    from mmaction.evaluation.functional.ava_evaluation import metrics

    none = metrics.compute_precision_recall(np.array([0.5]), np.array([False]), 0)
    assert np.isnan(metrics.compute_average_precision(*none))
    some = metrics.compute_precision_recall(np.array([0.9, 0.5]), np.array([False, True]), 1)
    assert metrics.compute_average_precision(*some) == pytest.approx(0.5)


def name_of_a_passing_file():
    from mmaction.evaluation.metrics import ava_metric

    return ava_metric.datetime.now().strftime('in the same second')


def test_passing_files_of_two_processes_have_two_names():
    with multiprocessing.get_context('fork').Pool(1) as other:
        names = {name_of_a_passing_file(), other.apply(name_of_a_passing_file)}
    assert len(names) == 2
    assert all(name.startswith('in the same second_') for name in names)
