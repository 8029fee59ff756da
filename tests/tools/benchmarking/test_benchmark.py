# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The benchmark: what it counts, what it writes and what it refuses. Times are not asserted."""

import json

import pytest
import torch
from mmengine.config import Config

from benchmarking import benchmark
from benchmarking.batches import read_batches
from benchmarking.operations import convolution_time
from counting.clips import read_videos
from counting.flops import measure
from vared2_mmaction import static_cost
from vared2_mmaction.apis import load_model
from vared2_mmaction.executors.cpu.library import missing_tool
from vared2_mmaction.executors.mixing import mix_anywhere, mix_on_gpu
from vared2_mmaction.models import dynamic_layers, force_policies, force_policy

from ...loading import load_tool
from ...videos import write_video

PIPELINE = """
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='SampleFrames', clip_len={}, frame_interval=1, num_clips={}, test_mode=True),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackActionInputs')]))
"""
R2PLUS1D = """
custom_imports = dict(imports=['vared2_mmaction'])
model = dict(
    type='Recognizer3D',
    backbone=dict(
        type='VARED2ResNet2Plus1d', depth=18, base_channels=8, pretrained=None, pretrained2d=False,
        num_stages=1, stage_blocks=(1,), out_indices=(0,), conv_cfg=dict(type='Conv2plus1d'),
        spatial_strides=(1,), temporal_strides=(1,), dilations=(1,), dynamic=dict(),
        conv1_kernel=(1, 3, 3)),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', num_classes=5, in_channels=8))
load_from = 'work_dirs/not/trained/yet.pth'
""" + PIPELINE.format(4, 1)
TSN = """
custom_imports = dict(imports=['vared2_mmaction'])
model = dict(
    type='Recognizer2D',
    backbone=dict(
        type='VARED2ResNet', depth=18, pretrained=None, num_segments=4,
        num_stages=1, strides=(2,), dilations=(1,), out_indices=(0,)),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2TSNHead', num_classes=5, in_channels=64))
""" + PIPELINE.format(1, 4)
STATIC = R2PLUS1D.replace('VARED2', '').replace(', dynamic=dict()', '')
STATIC = STATIC.replace("dict(type='SoftModulationGateNeck')", 'None')
SHAPES = {R2PLUS1D: (3, 4, 32, 32), TSN: (3, 4, 32, 32)}
KEYS = {
    *('mode', 'policy', 'batch_size', 'shape', 'device', 'dtype', 'macs_ratio', 'time_ratio'),
    *('time_ratio_p10', 'time_ratio_p90', 'time_ratio_unhelped', 'realised', 'static_ms'),
    *('dynamic_ms', 'peak_memory_ratio', 'static_peak_mb', 'dynamic_peak_mb'),
    *('clips', 'help', 'own_help', 'threads', 'runs', 'seed'),
}


def read(text):
    cfg = Config.fromstring(text, '.py')
    cfg.load_from = None
    return cfg


def build(text):
    return load_model(read(text))[0]


def randomise(model):
    """Give every clip and layer some answer of its own."""
    for layer in dynamic_layers(model).values():
        torch.nn.init.normal_(layer.gate.fc2.weight, std=2)
        torch.nn.init.normal_(layer.gate.fc2.bias, std=1)


def case(policy, batch_size=1, shape=(3, 4, 32, 32)):
    return benchmark.Case(benchmark.parse_policy(policy), batch_size, shape)


def counted_ratio_of(model, channel, temporal):
    clip = benchmark.make_batch(model, 1, (3, 4, 32, 32), seed=0).inputs
    with force_policy(model, channel, temporal):
        return counted_ratio(model, clip)


def counted_ratio(model, clip):
    total = measure(model, [[clip]]).total
    return (total.executed + total.overhead) / total.static


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark')


@pytest.fixture
def run_tool(tool, tmp_path):
    """Run the command on a config; the report."""

    def run(text, *arguments, weights=()):
        config, out = tmp_path / 'config.py', tmp_path / 'report.json'
        config.write_text(text)
        tool.main([str(config), *weights, '--runs', '2', '--out', str(out), *arguments])
        return json.loads(out.read_text())

    return run


def check_rows(rows, mode):
    for row in rows:
        assert set(row) == KEYS
        assert (row['mode'], row['device'], row['dtype']) == (mode, 'cpu', 'float32')
        assert (row['batch_size'], row['shape'], row['runs']) == (2, [3, 4, 32, 32], 2)
        assert 0 < row['time_ratio_p10'] <= row['time_ratio'] <= row['time_ratio_p90']
        assert min(row['static_ms'], row['dynamic_ms'], row['time_ratio_unhelped']) > 0
        memory = row['dynamic_peak_mb'] / row['static_peak_mb']
        assert row['peak_memory_ratio'] == pytest.approx(memory)


def test_report(run_tool, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '120')
    policies = ('full', 'channel=1', 'channel=1,temporal=2', 'mixed', 'learned', 'pruned:channel=1')
    report = run_tool(R2PLUS1D, '--policy', *policies, '--batch-sizes', '2')
    rows = report['rows']
    assert [row['policy'] for row in rows] == list(policies)
    check_rows(rows, 'infer')
    for row in rows:
        assert row['help'][0] == 'optimize'
        assert ('by cpu (C++)' in row['help'][1]) == (missing_tool() is None)
        assert row['own_help'] == []
    full, channel, both, mixed, learned, pruned = (row['macs_ratio'] for row in rows)
    assert both < channel < pruned < 1 <= full < 1.1  # gates cost something
    assert both < mixed < full <= learned
    assert rows[0]['realised'] is None
    expected = (1 - rows[2]['time_ratio']) / (1 - both)
    assert rows[2]['realised'] == pytest.approx(expected)
    environment = report['environment']
    assert set(environment) == {
        *('machine', 'gpu', 'cores', 'threads', 'versions', 'date', 'command'),
        'freed_memory_kept',
    }
    assert environment['versions']['torch'] == torch.__version__
    assert environment['gpu'] is None
    assert 'tools/benchmark.py' in environment['command']
    assert 'channel=1,temporal=2' in capsys.readouterr().out


def test_report_of_frames(run_tool):
    rows = run_tool(TSN, '--policy', 'full', 'mixed', '--batch-sizes', '2')['rows']
    check_rows(rows, 'infer')
    full, mixed = (row['macs_ratio'] for row in rows)
    assert mixed < 1 <= full


def test_report_of_training(run_tool):
    rows = run_tool(R2PLUS1D, '--mode', 'train', '--batch-sizes', '2')['rows']
    assert [row['policy'] for row in rows] == ['learned', 'pruned:channel=1,temporal=0']
    check_rows(rows, 'train')
    for row in rows:
        assert row['help'] == ['fastest forms']
        assert (row['own_help'] == ['C++ mixing']) == (missing_tool() is None)
    assert rows[1]['macs_ratio'] < 1 <= rows[0]['macs_ratio']


def test_training_compiled(run_tool):
    arguments = ('--mode', 'train', '--compile', 'eager', '--policy', 'pruned:channel=1')
    one = R2PLUS1D.replace('dynamic=dict()', "dynamic=dict(layers='conv2.*conv_s')")  # is quicker
    (row,) = run_tool(one, *arguments, '--batch-sizes', '2', '--no-unhelped')['rows']
    assert row['help'] == ['fastest forms', 'compile by eager']
    assert row['own_help'] == []
    assert row['macs_ratio'] < 1


@pytest.mark.parametrize(
    ('text', 'options'),
    [(R2PLUS1D, (0, 0)), (R2PLUS1D, (0, 2)), (TSN, (1, 0)), (TSN, (2, 1))],
    ids=['3-D, full', '3-D', '2-D, channels', '2-D'],
)
def test_multiply_adds_are_those_of_the_flop_counter(text, options):
    model = build(text)
    policy = 'channel={},temporal={}'.format(*options)
    network = benchmark.build_network('ours', model, case(policy, 2), benchmark.Options())
    ratio = benchmark.macs_ratio(network, static_cost(model, network.batches[0].inputs[:1].shape))
    assert ratio == pytest.approx(counted_ratio_of(model, *options), rel=1e-12)


def test_training_computes_the_dearest_options_in_use():
    model = build(R2PLUS1D)
    options = benchmark.Options('train')
    static = static_cost(model, (1, 1, *SHAPES[R2PLUS1D]))

    def ratio(policy):
        network = benchmark.build_network('ours', model, case(policy, 2), options)
        return benchmark.macs_ratio(network, static)

    assert 1 <= ratio('channel=1') < ratio('learned')
    half = counted_ratio_of(model, 1, 1)
    gates = sum(layer.gate.macs() for layer in dynamic_layers(model).values()) / static
    pruned = ratio('pruned:channel=1,temporal=1')  # nobody asks the gates
    assert pruned == pytest.approx(half - gates, rel=1e-12)
    assert ratio('pruned:channel=1+,temporal=1') > half  # cheap operations of more options


def test_pruned_layers_keep_what_is_named():
    model, policy = build(R2PLUS1D), benchmark.parse_policy('pruned:channel=1+,temporal=3')
    policy.prune(model)
    for layer in dynamic_layers(model).values():
        assert layer.in_use == ((1, 2), (2,))
    assert policy.draw(1, 2, 0) is None


@pytest.mark.parametrize('policy', ['mixed', 'learned'])
def test_multiply_adds_are_means_over_clips(policy):
    model = build(R2PLUS1D)
    randomise(model)
    options = benchmark.Options(seed=3)
    network = benchmark.build_network('ours', model, case(policy, 3), options)
    batch = benchmark.make_batch(model, 3, (3, 4, 32, 32), seed=3).inputs
    drawn = benchmark.parse_policy(policy).draw(3, len(dynamic_layers(model)), 3)
    ratios = []
    for i in range(3):
        if drawn is None:
            ratios.append(counted_ratio(model, batch[i : i + 1]))
        else:
            with force_policies(model, drawn[i : i + 1]):
                ratios.append(counted_ratio(model, batch[i : i + 1]))
    assert len(set(ratios)) > 1
    found = benchmark.macs_ratio(network, static_cost(model, batch[:1].shape))
    assert found == pytest.approx(sum(ratios) / 3, rel=1e-12)


def test_policies_are_drawn_from_the_seed():
    mixed = benchmark.parse_policy('mixed')
    drawn = mixed.draw(8, 5, seed=1)
    assert drawn.shape == (8, 5, 2)
    assert set(drawn.flatten().tolist()) == {0, 1, 2}
    assert torch.equal(drawn, mixed.draw(8, 5, seed=1))
    assert not torch.equal(drawn, mixed.draw(8, 5, seed=2))
    uniform = benchmark.parse_policy('temporal=1,channel=2').draw(3, 5, seed=0)
    assert uniform.shape == (3, 5, 2)
    assert (uniform == torch.tensor([2, 1])).all()
    assert benchmark.parse_policy('temporal=1').options == (0, 1)
    assert benchmark.parse_policy('full').options == (0, 0)
    assert benchmark.parse_policy('learned').draw(3, 5, seed=0) is None


def test_batches_are_drawn_from_the_seed():
    model = build(TSN)
    batch, same = (benchmark.make_batch(model, 2, (3, 4, 32, 32), seed=1) for _ in range(2))
    other = benchmark.make_batch(model, 2, (3, 4, 32, 32), seed=5)
    assert batch.inputs.shape == (2, 4, 3, 32, 32)
    assert torch.equal(batch.inputs, same.inputs)
    assert not torch.equal(batch.inputs[0], batch.inputs[1])
    assert not torch.equal(batch.inputs, other.inputs)
    labels = [sample.gt_label.item() for sample in batch.data_samples]
    assert labels == [sample.gt_label.item() for sample in same.data_samples]
    assert set(labels) <= set(range(5))
    assert benchmark.make_batch(build(R2PLUS1D), 2, (3, 8, 32, 40), 0).inputs.shape == (
        *(2, 1, 3, 8),
        *(32, 40),
    )


@pytest.mark.parametrize('text', [R2PLUS1D, TSN], ids=['3-D', '2-D'])
def test_networks_of_a_full_policy_answer_alike(text):
    model = build(text)
    networks = ('stock', 'ours', 'unhelped')
    scores = []
    for name in networks:
        network = benchmark.build_network(name, model, case('full', 2), benchmark.Options())
        with network.context():
            samples = network.call()
        scores.append(torch.stack([sample.pred_score for sample in samples]))
    for other in scores[1:]:
        torch.testing.assert_close(scores[0], other, rtol=1e-4, atol=1e-5)


def test_a_training_step_moves_only_the_copy():
    model = build(R2PLUS1D)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = benchmark.Options(mode='train')
    for name in ('stock', 'ours', 'unhelped'):
        network = benchmark.build_network(name, model, case('channel=1', 2), options)
        weight = network.model.cls_head.fc_cls.weight
        start = weight.detach().clone()
        with network.context():
            network.call()
        assert not torch.equal(weight, start)
        assert weight.grad is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert dict(model.state_dict()).keys() == before.keys()


def test_networks_take_turns_inside_their_contexts():
    calls = []

    class Context:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            calls.append(f'open {self.name}')

        def __exit__(self, *_):
            calls.append(f'close {self.name}')

    networks = [
        benchmark.Network(None, lambda n=n: calls.append(n), lambda n=n: Context(n), None)
        for n in 'abc'
    ]
    rounds = []
    seconds = benchmark.time_in_turn(networks, 3, progress=lambda: rounds.append(len(calls)))
    assert [len(times) for times in seconds] == [3, 3, 3]
    assert len(rounds) == benchmark.WARMUP + 3
    names = [name for name in calls if len(name) == 1]
    turns = [''.join(names[i : i + 3]) for i in range(0, len(names), 3)]
    assert all(sorted(turn) == ['a', 'b', 'c'] for turn in turns)
    assert {turn[0] for turn in turns} == {'a', 'b', 'c'}
    assert calls[:3] == [f'open {names[0]}', names[0], f'close {names[0]}']


def test_summary():
    times = {'stock': [1, 2, 4], 'ours': [1, 1, 1], 'unhelped': [2, 2, 4]}
    row = benchmark.summarise(times, 0.5)
    assert row['time_ratio'] == 0.5
    assert (row['time_ratio_p10'], row['time_ratio_p90']) == pytest.approx((0.3, 0.9))
    assert (row['static_ms'], row['dynamic_ms']) == (2000, 1000)
    assert row['time_ratio_unhelped'] == 0.5
    assert row['realised'] == 1
    del times['unhelped']
    assert benchmark.summarise(times, 0.5)['time_ratio_unhelped'] is None
    assert benchmark.realised(0.9, 0.6) == pytest.approx(0.25)
    assert benchmark.realised(1.2, 0.6) == pytest.approx(-0.5)
    assert benchmark.realised(0.9, 0.95) is None


def test_stock_as_it_is_can_be_left_out(run_tool):
    arguments = ('--no-unhelped', '--threads', '1', '--mode', 'train')
    chosen = ('--policy', 'full', '--batch-sizes', '1', '--shape', '3', '4', '40', '32')
    (row,) = run_tool(TSN, *arguments, *chosen)['rows']
    assert row['time_ratio_unhelped'] is None
    assert row['shape'] == [3, 4, 40, 32]
    assert row['threads'] == 1


def test_executors_can_be_chosen(run_tool, monkeypatch, capsys, tmp_path):
    chosen = ('--policy', 'channel=1', '--batch-sizes', '1', '--no-unhelped')
    (row,) = run_tool(R2PLUS1D, *chosen, '--executor', 'eager')['rows']
    assert 'by eager' in row['help'][1]
    monkeypatch.setenv('CXX', 'no-such-compiler')
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))  # what is built is used without one
    (row,) = run_tool(R2PLUS1D, *chosen, '--mode', 'train', '--batch-sizes', '2')['rows']
    assert row['own_help'] == []
    with pytest.raises(SystemExit):
        run_tool(R2PLUS1D, *chosen, '--executor', 'cpu')
    assert '--executor cpu: there is no C++ compiler' in capsys.readouterr().err


def test_training_mixes_by_the_executor():
    model = build(R2PLUS1D)
    for executor in ('eager', 'cpu') if missing_tool() is None else ('eager',):
        options = benchmark.Options('train', executor=executor)
        network = benchmark.build_network('ours', model, case('learned', 2), options)
        mixed = {layer.mix for layer in dynamic_layers(network.model).values()}
        assert mixed == {mix_anywhere if executor == 'cpu' else mix_on_gpu}


VIDEOS = """
test_dataloader = dict(dataset=dict(
    type='VideoDataset', ann_file='{0}/test.txt', data_prefix=dict(video='{0}'), test_mode=True,
    pipeline=[
        dict(type='DecordInit'),
        dict(type='SampleFrames', clip_len={1}, frame_interval=1, num_clips={2}, test_mode=True),
        dict(type='DecordDecode'),
        dict(type='Resize', scale=(32, 32), keep_ratio=False),
        dict(type='FormatShape', input_format='{3}'),
        dict(type='PackActionInputs')]))
model['data_preprocessor'] = dict(
    type='ActionDataPreprocessor', mean=[128.0] * 3, std=[40.0] * 3, format_shape='{3}')
"""


@pytest.fixture(params=['3-D', '2-D'])
def on_videos(request, videos):
    """A config whose test set are three videos, of which a 3-D network sees three clips each."""
    if request.param == '3-D':
        return R2PLUS1D + VIDEOS.format(videos, 4, 3, 'NCTHW')
    return TSN + VIDEOS.format(videos, 1, 4, 'NCHW')


def save_randomised(text, path):
    torch.manual_seed(23)  # gates of few layers that answer each video otherwise
    model = build(text)
    randomise(model)
    for layer in dynamic_layers(model).values():
        layer.gate.fc1.weight.data *= 10  # the videos resemble each other
    torch.save(model.state_dict(), path)
    return model, str(path)


def test_learned_policies_are_those_of_test_videos(
    on_videos, run_tool, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv('COLUMNS', '200')
    model, weights = save_randomised(on_videos, tmp_path / 'weights.pth')
    clips = [list(clips) for clips in read_videos(read(on_videos), model, 'test', 3)]
    middle = [of_video[len(of_video) // 2] for of_video in clips]
    ratios = [counted_ratio(model, clip) for clip in middle]
    assert len(set(ratios)) == 3
    chosen = ('--data', '--policy', 'learned', '--no-unhelped', '--executor', 'eager')
    sizes = ('--batch-sizes', '1', '2')
    rows = run_tool(on_videos, *chosen, *sizes, weights=[weights])['rows']
    assert [row['clips'] for row in rows] == ['3 test videos', '2 test videos']
    for row, used in zip(rows, (ratios, ratios[:2]), strict=True):
        assert row['macs_ratio'] == pytest.approx(sum(used) / len(used), rel=1e-9)
        assert row['shape'] == [3, 4, 32, 32]
    told = capsys.readouterr().out
    assert 'learned, of 3 test videos' in told
    assert 'saw noise' not in told


def test_networks_are_fed_the_same_videos(videos):
    text = R2PLUS1D + VIDEOS.format(videos, 4, 1, 'NCTHW')
    model, seen = build(text), {}
    batches = read_batches(read(text), model, 3)
    assert [video.inputs.shape for video in batches] == [(1, 1, 3, 4, 32, 32)] * 3
    assert [int(video.data_samples[0].gt_label) for video in batches] == [0, 1, 0]
    options = benchmark.Options(videos=batches)
    networks = [
        benchmark.build_network(name, model, case('full'), options) for name in ('stock', 'ours')
    ]
    for name, network in zip(('stock', 'ours'), networks, strict=True):
        seen[name] = []
        network.model.backbone.register_forward_pre_hook(
            lambda _, args, of=seen[name]: of.append(args[0].flatten()[:9].tolist())
        )
    benchmark.time_in_turn(networks, 4)
    expected = [batch.inputs[0, 0].flatten()[:9].tolist() for batch in batches]
    assert seen['stock'] == seen['ours'] == [expected[i % 3] for i in range(6)]


def test_training_takes_labels_of_test_videos(run_tool, videos):
    text = R2PLUS1D + VIDEOS.format(videos, 4, 1, 'NCTHW')
    chosen = ('--mode', 'train', '--policy', 'channel=1', '--no-unhelped')
    (row,) = run_tool(text, *chosen, '--data', '--batch-sizes', '2', '--num-videos', '2')['rows']
    assert row['clips'] == '2 test videos'


def test_a_learned_row_on_noise_says_so(run_tool, monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '200')
    chosen = ('--policy', 'full', 'learned', '--batch-sizes', '1', '--executor', 'eager')
    rows = run_tool(R2PLUS1D, *chosen, '--no-unhelped')['rows']
    assert [row['clips'] for row in rows] == ['noise', 'noise']
    told = capsys.readouterr().out
    assert 'learned, of noise' in told
    assert 'full, of' not in told
    assert 'Gates saw noise' in told


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--data', '--shape', '3', '4', '32', '32'], 'not allowed with argument --data'),
        (['--data', '--batch-sizes', '1', '4'], '--batch-sizes 4: expected at most 3, the videos'),
        (
            ['--data', '--batch-sizes', '1', '3', '--num-videos', '2'],
            '--batch-sizes 3: expected at most 2, the videos',
        ),
        (['--data', '--num-videos', '0'], '--num-videos 0: expected at least 1'),
        (
            ['--data', '--cfg-options', 'test_dataloader.dataset.ann_file=gone.txt'],
            "ann_file='gone.txt': no such annotation file",
        ),
        (['--data', '--cfg-options', 'test_dataloader=None'], 'the config has no test_dataloader'),
    ],
)
def test_mistakes_with_data_are_named(arguments, message, videos, run_tool, tool, capsys):
    with pytest.raises(SystemExit):
        run_tool(R2PLUS1D + VIDEOS.format(videos, 4, 1, 'NCTHW'), *arguments)
    assert message in capsys.readouterr().err


def test_clips_of_two_sizes_are_named(videos, tmp_path, run_tool, capsys):
    write_video(tmp_path / 'wide.mp4', 12, size=(96, 32))
    write_video(tmp_path / 'small.mp4', 12, size=(32, 32))
    (tmp_path / 'test.txt').write_text('wide.mp4 0\nsmall.mp4 1\n')
    text = (R2PLUS1D + VIDEOS.format(tmp_path, 4, 1, 'NCTHW')).replace(', keep_ratio=False', '')
    with pytest.raises(SystemExit):
        run_tool(text, '--data', '--batch-sizes', '1')
    assert 'test_dataloader: expected clips of one size, found' in capsys.readouterr().err


def test_profile(run_tool, capsys):
    chosen = ('--policy', 'full', 'channel=1,temporal=1', '--batch-sizes', '1')
    rows = run_tool(R2PLUS1D, *chosen, '--no-unhelped', '--profile')['rows']
    for row in rows:
        assert set(row) == KEYS | {
            'static_operations_ms',
            'dynamic_operations_ms',
            'realised_bound',
        }
        for operations in (row['static_operations_ms'], row['dynamic_operations_ms']):
            total, *times = operations.values()
            assert times == sorted(times, reverse=True)
            assert 0 < convolution_time(operations) <= sum(times) < total
    assert rows[0]['realised_bound'] is None
    conv = [convolution_time(rows[1][f'{name}_operations_ms']) for name in ('static', 'dynamic')]
    bound = (1 - conv[1] / conv[0]) / (1 - rows[1]['macs_ratio'])
    assert rows[1]['realised_bound'] == pytest.approx(bound)
    assert f'realised at most {bound:.3f}' in capsys.readouterr().out


def test_several_shapes(run_tool):
    shapes = [[3, 4, 32, 32], [3, 8, 32, 40]]
    options = [option for shape in shapes for option in ('--shape', *map(str, shape))]
    chosen = ('--policy', 'full', '--batch-sizes', '1', '2', '--no-unhelped')
    rows = run_tool(R2PLUS1D, *chosen, *options)['rows']
    found = [(row['batch_size'], row['shape']) for row in rows]
    assert found == [(n, shape) for n in (1, 2) for shape in shapes]


def test_the_unhelped_network_is_stock():
    options, model = benchmark.Options(), build(R2PLUS1D)
    network = benchmark.build_network('unhelped', model, case('full'), options).model
    assert not any(type(m).__module__.startswith('vared2_mmaction') for m in network.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_bfloat16(mode, run_tool):
    arguments = ('--dtype', 'bfloat16', '--mode', mode, '--policy', 'channel=1')
    (row,) = run_tool(R2PLUS1D, *arguments, '--batch-sizes', '2')['rows']
    assert row['dtype'] == 'bfloat16'
    assert 'bfloat16 autocast' in row['help']
    assert not any('C++' in help for help in (*row['help'], *row['own_help']))


def test_the_file_is_whole_after_every_row(tool, run_tool, tmp_path, monkeypatch):
    measure, seen = benchmark.run_case, []

    def stop_at_the_third(*args):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(measure(*args))
        return seen[-1]

    monkeypatch.setattr(tool.benchmark, 'run_case', stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_tool(R2PLUS1D, '--policy', 'full', 'mixed', 'learned', '--batch-sizes', '1')
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['rows'] == seen
    assert set(report) == {'environment', 'rows'}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.py', 'report.json']


@pytest.mark.parametrize(
    ('text', 'arguments', 'message'),
    [
        (R2PLUS1D, ['--policy', 'half'], '--policy half: expected full, mixed, learned, channel'),
        (R2PLUS1D, ['--policy', 'channel=-1'], '--policy channel=-1: expected'),
        (R2PLUS1D, ['--policy', 'channel=1,channel=2'], '--policy channel=1,channel=2: expected'),
        (R2PLUS1D, ['--policy', 'channel=1,time=2'], '--policy channel=1,time=2: expected'),
        (R2PLUS1D, ['--policy', 'channel'], '--policy channel: expected'),
        (R2PLUS1D, ['--runs', '0'], '--runs 0: expected at least 1'),
        (R2PLUS1D, ['--batch-sizes', '1', '0'], '--batch-sizes 0: expected at least 1'),
        (R2PLUS1D, ['--threads', '0'], '--threads 0: expected at least 1'),
        (R2PLUS1D, ['--seed', '-1'], '--seed -1: expected a number from 0'),
        (R2PLUS1D, ['--mode', 'test'], "argument --mode: invalid choice: 'test'"),
        (R2PLUS1D, ['--shape', '3', '32', '32'], '--shape 3 32 32: expected C T H W'),
        (R2PLUS1D, ['--shape', '3', '0', '32', '32'], '--shape 3 0 32 32: expected C T H W'),
        (R2PLUS1D, ['--shape', '4', '4', '32', '32'], '--shape 4 4 32 32: the network cannot take'),
        (TSN, ['--shape', '3', '8', '32', '32'], '--shape 3 8 32 32: expected T = 4'),
        (R2PLUS1D, ['--out', 'no/such/folder/a.json'], "--out 'no/such/folder/a.json'"),
        (R2PLUS1D, ['missing.pth'], "CHECKPOINT='missing.pth': no such file"),
        (R2PLUS1D, ['--cfg-options', 'test_dataloader=None'], '--shape C T H W is needed'),
        (R2PLUS1D, ['--policy', 'pruned:channel=9'], '--policy pruned:channel=9: expected'),
        (R2PLUS1D, ['--policy', 'channel=1+'], '--policy channel=1+: expected'),
        (R2PLUS1D, ['--policy', 'pruned:'], '--policy pruned:: expected'),
        (R2PLUS1D, ['--executor', 'cpu', '--dtype', 'bfloat16'], '--executor cpu: expected'),
        (R2PLUS1D, ['--executor', 'cuda'], '--executor cuda: expected --device cuda and'),
        (R2PLUS1D, ['--compile'], '--compile: expected --mode train'),
        (R2PLUS1D, ['--profile', '--mode', 'train'], '--profile: expected --device cpu and --mode'),
        (STATIC, [], 'expected a dynamic network'),
    ],
)
def test_errors_name_the_option(text, arguments, message, tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool.benchmark, 'run_case', lambda *_: pytest.fail('something slow began'))
    config = tmp_path / 'config.py'
    config.write_text(text)
    with pytest.raises(SystemExit) as caught:
        tool.main([str(config), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_named(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        tool.main(['missing.py', '--device', 'cuda'])
    assert '--device cuda: expected a GPU' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(['missing.py'])
    assert "CONFIG='missing.py': no such file" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_report_of_a_gpu(mode, run_tool):
    arguments = ('--policy', 'mixed', '--batch-sizes', '2', '--dtype', 'bfloat16')
    report = run_tool(R2PLUS1D, '--device', 'cuda', '--mode', mode, *arguments)
    assert report['environment']['gpu']
    assert report['rows'][0]['peak_memory_ratio'] > 0
