# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""One video through MMAction2's inferencers: what comes back, and what is refused."""

import wave
from pathlib import Path

import pytest
import torch
from mmaction.apis.inferencers import ActionRecogInferencer, MMAction2Inferencer
from torch import nn

from vared2_mmaction import static_cost
from vared2_mmaction.apis import inference, load_inferencer, optimizing, recognize

from ..networks import CLASSES, change, write_network
from ..videos import write_video

KINDS = ('Recognizer3D', 'Recognizer2D')
DENSE = """
_base_.test_pipeline[1] = dict(
    type='DenseSampleFrames', clip_len=8, frame_interval=1, num_sample_positions=3, test_mode=True)
test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
"""
RAW_FRAMES = """
_base_.test_pipeline[2] = dict(type='RawFrameDecode')
test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline[1:]))
"""
UPDATE = 'test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))'
STATIC = """
model = dict(
    backbone=dict(_delete_=True, type='ResNet2Plus1d', depth=18, pretrained=None,
        pretrained2d=False, conv_cfg=dict(type='Conv2plus1d'), temporal_strides=(1, 2, 2, 2)),
    neck=None, cls_head=dict(_delete_=True, type='I3DHead', in_channels=512,
        num_classes=_base_.model.cls_head.num_classes, average_clips='prob'))
"""


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('networks')
    return {kind: write_network(folder, kind) for kind in KINDS}


@pytest.fixture(scope='module')
def network(networks):
    return networks['Recognizer3D']


@pytest.fixture(scope='module')
def inferencer(network):
    return load_inferencer(*network, device='cpu')


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / 'classes.txt'
    path.write_text('\n'.join(CLASSES) + '\n')
    return str(path)


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / 'video.mp4', 20)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('stock', [ActionRecogInferencer, MMAction2Inferencer])
def test_agrees_with_mmaction2(kind, stock, networks, labels, video):
    config, checkpoint = networks[kind]
    inferencer = load_inferencer(config, checkpoint, 'cpu', labels, optimized=False)
    found = recognize(inferencer, video)
    # Their label_file needs a visualizer in the config.
    theirs = stock(
        change(config, "visualizer = dict(type='ActionVisualizer')"), checkpoint, 'cpu', labels
    )
    (sample,) = theirs(video, return_datasamples=True)['predictions']
    assert dict(zip(found.labels, found.scores, strict=True)) == pytest.approx(
        dict(zip(CLASSES, sample.pred_score.tolist(), strict=True))
    )
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert found.compute_ratio == sample.compute_ratio < 1
    assert (found.policy == sample.policy).all()
    again = recognize(theirs, video)
    assert (again.labels, again.scores) == (found.labels, found.scores)


@pytest.mark.parametrize('kind', KINDS)
def test_optimised_it_answers_the_same(kind, networks, video, monkeypatch):
    logged = []
    monkeypatch.setattr(optimizing, 'print_log', lambda text, *_: logged.append(text))
    expected = recognize(load_inferencer(*networks[kind], optimized=False), video)
    assert not logged
    found = recognize(load_inferencer(*networks[kind]), video)
    (said,) = logged
    assert said.startswith('executed: ')
    assert dict(zip(found.labels, found.scores, strict=True)) == pytest.approx(
        dict(zip(expected.labels, expected.scores, strict=True)), abs=1e-4
    )
    assert torch.equal(found.policy, expected.policy)
    assert found.layers == expected.layers
    assert found.compute_ratio == pytest.approx(expected.compute_ratio)
    assert found.overhead_gmacs == pytest.approx(expected.overhead_gmacs)


@pytest.mark.parametrize('kind', KINDS)
def test_compute_is_that_of_the_static_backbone(kind, networks, video):
    inferencer = load_inferencer(*networks[kind], optimized=False)
    found = recognize(inferencer, video)
    shape = (1, 3, 8, 32, 32) if kind == 'Recognizer3D' else (8, 3, 32, 32)
    static = static_cost(inferencer.model.get_submodule('backbone'), shape) / 1e9
    assert found.static_gmacs == pytest.approx(static)
    assert found.compute_gmacs == pytest.approx(found.compute_ratio * static)
    assert found.overhead_gmacs > 0
    assert len(found.layers) == found.policy.shape[1] > 1
    for layer in found.layers:
        convolution = inferencer.model.get_submodule(f'backbone.{layer}')
        assert isinstance(convolution, nn.Conv2d | nn.Conv3d)


@pytest.mark.parametrize('kind', KINDS)
def test_frames_are_what_the_network_sees(kind, networks, video):
    inferencer = load_inferencer(*networks[kind])
    frames = recognize(inferencer, video).frames
    assert frames.shape == (1, 8, 32, 32, 3)
    seen = inferencer.pipeline(video)['inputs']
    seen = seen[0].transpose(0, 1) if kind == 'Recognizer3D' else seen
    assert (frames[0].permute(0, 3, 1, 2) == seen).all()
    red, green, blue = frames[0, 0].float().flatten(0, 1).amax(0)
    assert red > green > blue + 50  # the square, (240, 200, 40)


def test_several_views(network, video):
    found = recognize(load_inferencer(change(network[0], DENSE), network[1]), video)
    assert found.frames.shape == (3, 8, 32, 32, 3)
    assert found.policy.shape == (3, len(found.layers), 2)
    one = recognize(load_inferencer(*network), video)
    assert found.static_gmacs == pytest.approx(one.static_gmacs)  # a view


WRAPPED = """
once = dict(type='DecodeOnce', transforms=_base_.test_pipeline[:4])
dataset = dict(type='VideoDataset', pipeline=[once, *_base_.test_pipeline[4:]])
dataset = dict(type='ConcatDataset', datasets=[dataset])
test_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset=dataset))
"""


@pytest.mark.parametrize('kind', KINDS)
def test_wrappers_of_data_sets_and_steps_change_nothing(kind, networks, video):
    config, checkpoint = networks[kind]
    found = recognize(load_inferencer(change(config, WRAPPED), checkpoint), video)
    assert found.scores == recognize(load_inferencer(config, checkpoint), video).scores


def test_without_names_classes_are_numbered(inferencer, video):
    assert sorted(recognize(inferencer, video).labels) == ['0', '1', '2']


def test_raw_frame_config_decodes_videos(network, inferencer, video):
    raw = load_inferencer(change(network[0], RAW_FRAMES), network[1])
    assert recognize(raw, video).scores == recognize(inferencer, video).scores


@pytest.mark.parametrize('frames', [1, 3, 400])
@pytest.mark.parametrize('size', [(33, 49), (90, 160), (426, 240)])
def test_any_length_and_size(frames, size, inferencer, tmp_path):
    path = write_video(tmp_path / 'odd.mp4', frames, size=size)
    found = recognize(inferencer, path)
    assert sum(found.scores) == pytest.approx(1)
    assert found.frames.shape == (1, 8, 32, 32, 3)


def write_audio(path):
    with wave.open(str(path), 'wb') as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(8000)
        audio.writeframes(bytes(8000))


def cut(path):
    write_video(path, 20)
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (lambda path: None, 'no such file'),
        (lambda path: path.mkdir(), 'found a folder'),
        (lambda path: path.write_bytes(b''), 'cannot be opened'),
        (lambda path: path.write_text('words'), 'cannot be opened'),
        (write_audio, 'cannot be opened'),
        (cut, 'cannot be opened'),
        (lambda path: write_video(path, 0), 'cannot be opened'),
        (lambda path: write_video(path, 9, size=(48, 64)), 'fails on some widths up to 72 pixels'),
    ],
)
def test_bad_videos_are_named(write, message, inferencer, tmp_path):
    path = tmp_path / 'bad.mp4'
    write(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        recognize(inferencer, path)
    assert repr(str(path)) in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (STATIC, r'network is static \(backbone ResNet2Plus1d\)'),
        ("model = dict(type='FastRCNN')", "model.type='FastRCNN', expected Recognizer2D"),
        ("model = dict(cls_head=dict(type='I3DHead'))", 'VARED2I3DHead'),
        ('test_dataloader = dict(_delete_=True)', 'lacks test_dataloader.dataset.pipeline'),
        ("custom_imports = dict(imports=['no_such_module'])", 'cannot be read'),
    ],
)
def test_bad_configs_are_named(more, message, network):
    path = change(network[0], more)
    with pytest.raises(ValueError, match=message) as caught:
        load_inferencer(path, network[1])
    assert repr(path) in str(caught.value)


def test_failing_steps_and_inputs_are_named(networks, video):
    network = networks['Recognizer3D']
    steps = '_base_.test_pipeline[4:5] = []\n_base_.test_pipeline[3].update(scale=(2, 2))\n'
    steps += 'test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline[:STOP]))'
    whole = change(network[0], steps.replace('STOP', ''))
    found = recognize(load_inferencer(whole, network[1]), video)
    assert found.frames.shape[2:4] == (2, 2)
    without_packing = change(network[0], steps.replace('STOP', '-1'))
    with pytest.raises(ValueError, match='expected PackActionInputs as its last step'):
        recognize(load_inferencer(without_packing, network[1]), video)
    undecoded = change(network[0], '_base_.test_pipeline[2:3] = []\n' + UPDATE)
    with pytest.raises(ValueError, match=f'{video}.*the test pipeline fails'):
        recognize(load_inferencer(undecoded, network[1]), video)
    config, checkpoint = networks['Recognizer2D']
    five = change(config, '_base_.test_pipeline[1].update(num_clips=5)\n' + UPDATE)
    with pytest.raises(ValueError, match=f'{video}.*the network fails on input of shape.*5, 3, 32'):
        recognize(load_inferencer(five, checkpoint), video)


def test_scores_of_each_view_are_refused(network, video):
    path = change(network[0], 'model = dict(cls_head=dict(average_clips=None))')
    with pytest.raises(ValueError, match='average_clips=None'):
        recognize(load_inferencer(path, network[1]), video)


def test_stock_inferencer_of_a_static_network_is_refused(network, video):
    with pytest.warns(UserWarning, match='Checkpoint is not loaded'):
        stock = ActionRecogInferencer(change(network[0], STATIC), device='cpu')
    with pytest.raises(ValueError, match='the network is static'):
        recognize(stock, video)


def test_bad_checkpoints_are_named(networks, network, tmp_path):
    other = networks['Recognizer2D'][1]
    with pytest.raises(ValueError, match=f'{other}.*of another network'):
        load_inferencer(network[0], other)
    with pytest.raises(FileNotFoundError, match='nothing.pth'):
        load_inferencer(network[0], 'nothing.pth')
    (tmp_path / 'text.pth').write_text('words')
    with pytest.raises(ValueError, match='text.pth.*cannot be loaded'):
        load_inferencer(network[0], str(tmp_path / 'text.pth'))


def test_paths_need_not_be_text(network):
    config, checkpoint = map(Path, network)
    load_inferencer(config, checkpoint)
    with pytest.raises(FileNotFoundError, match="CHECKPOINT='nothing.pth': no such file"):
        load_inferencer(config, Path('nothing.pth'))


def test_missing_gates_are_logged(network, tmp_path, monkeypatch):
    weights = torch.load(network[1])['state_dict']
    static = {k: v for k, v in weights.items() if 'gate' not in k and '_options' not in k}
    torch.save({'state_dict': static}, tmp_path / 'static.pth')
    logged = []
    monkeypatch.setattr(inference, 'print_log', lambda text, *_: logged.append(text))
    load_inferencer(*network)
    assert not logged
    load_inferencer(network[0], str(tmp_path / 'static.pth'))
    assert 'lacks gates' in logged[0]


def test_names_are_those_of_a_head_within_another(network, labels, tmp_path):
    more = "head = dict(_delete_=True, type='VARED2Head', head=dict(type='I3DHead', num_classes=3, "
    more += "in_channels=32, average_clips='prob'))\nmodel = dict(cls_head=head)"
    inferencer = load_inferencer(change(network[0], more), network[1], label_file=labels)
    assert inferencer.visualizer.dataset_meta == {'classes': list(CLASSES)}
    (tmp_path / 'two.txt').write_text('left\nright\n')
    with pytest.raises(ValueError, match='found 2 names, expected 3 classes'):
        load_inferencer(change(network[0], more), network[1], label_file=str(tmp_path / 'two.txt'))


@pytest.mark.parametrize(
    ('text', 'message'),
    [('left\nright\n', 'found 2 names, expected 3 classes'), ('\udcff', 'expected text')],
)
def test_bad_labels_are_named(text, message, network, tmp_path):
    path = tmp_path / 'labels.txt'
    path.write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(ValueError, match=message) as caught:
        load_inferencer(*network, label_file=str(path))
    assert repr(str(path)) in str(caught.value)
    with pytest.raises(FileNotFoundError, match='gone.txt'):
        load_inferencer(*network, label_file='gone.txt')


def test_device(network, monkeypatch):
    expected = 'cuda' if torch.cuda.is_available() else 'cpu'
    parameter = next(load_inferencer(*network).model.parameters())
    assert parameter.device.type == expected
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(ValueError, match="device='cuda:1': PyTorch finds 1 CUDA devices"):
        load_inferencer(*network, device='cuda:1')
    with pytest.raises(ValueError, match="device='gpu': expected 'cpu', 'cuda' or 'cuda:N'"):
        load_inferencer(*network, device='gpu')
