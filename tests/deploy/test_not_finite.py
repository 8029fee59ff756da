# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Numbers that are not finite are seen, whatever executes the network."""

import pytest
import torch

from vared2_mmaction import force_policy, optimize

from ..compiling import needs_compiler
from ..models.backbones import SHORT, STOCK, dynamic, listed
from ..models.comparing import randomise, randomise_norms
from ..models.recognizers import batch, recognizer

BAD = (float('nan'), float('inf'), -float('inf'))


@pytest.fixture(scope='module', params=STOCK)
def networks(request):
    """A name, and its network as it is and by each executor."""
    torch.manual_seed(0)
    net = dynamic(request.param, **SHORT[request.param])
    randomise(net)
    randomise_norms(net)
    net.eval()
    return request.param, (net, *(optimize(net, executor=name) for name in ('eager', 'cpu')))


def with_one_bad_value(name, value):
    """Two clips, the second of which has a value that is no number, in a frame that all options
    compute."""
    x = torch.randn(STOCK[name][1])
    frame = x[len(x) // 2] if x.dim() == 4 else x[1, :, 0]
    frame[1, 7, 9] = value
    return x


@needs_compiler
def test_not_a_number_reaches_the_output_or_is_named(networks):
    name, nets = networks
    for net in nets:
        for value in BAD:
            x = with_one_bad_value(name, value)
            with torch.no_grad():
                try:
                    features = net(x).features
                except FloatingPointError as error:
                    layer, _, message = str(error).partition(': ')
                    assert layer in net.dynamic_layers
                    assert message.startswith('the weights of the gate are not finite')
                else:
                    assert not all(f.isfinite().all() for f in listed(features))


@needs_compiler
@pytest.mark.parametrize('policy', [(0, 0), (1, 1)])
def test_forced_policies_keep_what_is_no_number_to_its_clip(networks, policy):
    name, nets = networks
    x = with_one_bad_value(name, BAD[0])
    for net in nets:
        with torch.no_grad(), force_policy(net, *policy):
            for features in listed(net(x).features):
                good, bad = features.chunk(2)
                assert good.isfinite().all()
                assert bad.isnan().any()


@pytest.mark.parametrize('name', ['ResNet', 'ResNet3d', 'X3D'])
@pytest.mark.parametrize('value', BAD)
def test_scores_that_are_not_finite_are_named_by_their_video(name, value):
    def spoil_second(layer, args, scores):
        scores[1] = value

    model, data = recognizer(name), batch(name, 2)
    for number, sample in enumerate(data['data_samples']):
        sample.set_metainfo({'filename': f'video_{number}.mp4'})
    model.eval()
    with torch.no_grad():
        assert len(model.test_step(data)) == 2
        classify = model.cls_head.fc2 if name == 'X3D' else model.cls_head.fc_cls
        classify.register_forward_hook(spoil_second)
        with pytest.raises(FloatingPointError, match=r"Head: .* of video 'video_1.mp4' are not"):
            model.test_step(data)
