# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gradients of the full policy against the stock networks, whatever the batch and the clip, and the
strides of what stock modules are given."""

import copy

import pytest
import torch
from torch import nn

from vared2_mmaction import force_policy
from vared2_mmaction.models import accelerate

from .backbones import SHORT, STOCK, dynamic, listed, stock

# Clips and frames: one and several of each of the lengths that leave one, two and three options.
SHAPES = ((1, 4), (2, 4), (2, 8), (1, 16))
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
SEGMENTS = ('ResNet', 'ResNetTSM', 'TANet')  # clips have as many frames as there are segments
SIZE = 18  # so that the last of two stages has more than one position


def cases(name):
    """Keyword arguments of a backbone, and shapes that it takes."""
    if name == 'C3D':  # its linear layers want one size
        yield {}, (1, *STOCK[name][1][1:])
    elif name == 'ResNet3dSlowFast':
        yield from (({}, (clips, 3, 16, SIZE, SIZE)) for clips in (1, 2))
    elif name in SEGMENTS:
        lengths = {'ResNet': ((1, 1), (2, 1), *SHAPES), 'TANet': SHAPES}
        for clips, frames in lengths.get(name, SHAPES[:3]):
            yield {'num_segments': frames}, (clips * frames, 3, 16, 16)
    else:
        yield from (({}, (clips, 3, frames, SIZE, SIZE)) for clips, frames in SHAPES)


def gradients(net, x):
    """Gradients of the parameters and the input, and the largest of each."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.random.fork_rng():
        found = net(x)
    features = found if isinstance(found, torch.Tensor) else getattr(found, 'features', found)
    sum(f.square().mean() for f in listed(features)).backward()
    grads = {name: p.grad for name, p in net.named_parameters()} | {'input': x.grad}
    net.zero_grad()
    return grads


def as_laid_out(x):
    """Whether strides are those of one of PyTorch's memory formats, dimensions of size one too."""
    formats = (torch.contiguous_format, FORMATS[x.dim()])
    return any(
        x.stride() == torch.empty(x.shape, device='meta').to(memory_format=f).stride()
        for f in formats
    )


def watch_strides(net):
    """Note inputs of stock normalisations, activations and pools with strides of no layout."""
    odd = []

    def note(name, args):
        if not as_laid_out(args[0]):
            odd.append((name, tuple(args[0].shape), args[0].stride()))

    watched = (nn.BatchNorm2d, nn.BatchNorm3d, nn.MaxPool2d, nn.MaxPool3d)
    for name, module in net.named_modules():
        if isinstance(module, watched):
            module.register_forward_pre_hook(lambda m, args, name=name: note(name, args))
    return odd


@pytest.mark.parametrize('name', STOCK)
def test_gradients_of_the_full_policy_are_the_stock_networks(name):
    for kwargs, shape in cases(name):
        kwargs |= SHORT[name]
        net = dynamic(name, **kwargs).double()
        if name == 'ResNet':  # the stock one knows frames only
            kwargs.pop('num_segments')
        twin = stock(name, **kwargs).double()
        net.load_state_dict(twin.state_dict(), strict=False)
        x = torch.randn(shape, dtype=torch.float64)
        expected = gradients(twin, x)
        odd = watch_strides(net)
        runs = [(net, torch.contiguous_format), (net, FORMATS[x.dim()])]
        if name != 'C3D':  # takes as long as all others together
            runs.append((accelerate(copy.deepcopy(twin)), torch.contiguous_format))
        for other, layout in runs:
            with force_policy(net, 0, 0):
                found = gradients(other, x.contiguous(memory_format=layout))
            for key, wanted in expected.items():
                limit = 1e-6 * wanted.abs().max() + 1e-15
                assert (found[key] - wanted).abs().max() <= limit, (key, shape, layout)
        with force_policy(net, 1, 1):
            net(x)
        assert odd == []
