# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Nothing private of PyTorch is used where there is a public way."""

import ast
from pathlib import Path

import pytest
from torch import nn

from vared2_mmaction.models import kinds

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ('vared2_mmaction', 'tools') for path in (ROOT / folder).rglob('*.py')
)
NO_PUBLIC_WAY = {
    # Kernels packed for oneDNN.
    'torch._C._nn.mkldnn_reorder_conv2d_weight',
    'torch.ops.mkldnn._convolution_pointwise',
    'torch.ops.mkldnn._convolution_pointwise.binary',
    'torch.ops.mkldnn._convolution_pointwise.default',
    'torch.ops.mkldnn._get_mkldnn_serialized_md',
    'torch.ops.mkldnn._nbytes',
    # One launch for the statistics of many gates.
    'torch._foreach_add_',
    'torch._foreach_copy_',
    # MMEngine reverts SyncBatchNorm to what derives from no public class.
    'torch.nn.modules.batchnorm._BatchNorm',
    # The base of convolutions of all ranks, to derive from.
    'torch.nn.modules.conv._ConvNd',
    # Hooks of all modules can be registered, but not asked for.
    'torch.nn.modules.module._has_any_global_hook',
    # What pickled tensors name.
    'torch._utils._rebuild_tensor_v2',
    'torch.storage._load_from_bytes',
}


def private_names(source: str) -> set[str]:
    """Names of PyTorch with a private part that a module imports or uses, in full."""
    tree = ast.parse(source)
    bound = {}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {a.asname: a.name for a in node.names if a.asname}
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            full = {
                alias.asname or alias.name: f'{node.module}.{alias.name}' for alias in node.names
            }
            bound |= full
            found |= set(full.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split('.')
            if not all(map(str.isidentifier, (first, *rest))):
                continue  # of what a call returned
            found.add('.'.join((bound.get(first, first), *rest)))
    private = {n for n in found if n.startswith('torch.') and '._' in n and '.__' not in n}
    # `a._b` is a part of `a._b.c`, and found with it.
    return {n for n in private if not any(other.startswith(f'{n}.') for other in private)}


def test_private_names_are_found():
    source = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as tree
from torch.nn.modules.batchnorm import _BatchNorm as Norm
tree.tree_map, nn.modules.conv._ConvNd, torch._C._nn.gelu, F._pad, torch.nn.Linear, own._private
torch.__version__
"""
    assert private_names(source) == {
        'torch.utils._pytree.tree_map',
        'torch.nn.modules.batchnorm._BatchNorm',
        'torch.nn.modules.conv._ConvNd',
        'torch._C._nn.gelu',
        'torch.nn.functional._pad',
    }


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_have_no_public_way(path):
    assert private_names(path.read_text()) <= NO_PUBLIC_WAY


def test_kinds_of_layers_are_pytorchs_families():
    """What derives from a family's private base is of the kind, and nothing else."""
    families = {
        kinds.Convolution: nn.modules.conv._ConvNd,
        kinds.TransposedConvolution: nn.modules.conv._ConvTransposeNd,
    }
    classes = [k for k in vars(nn).values() if isinstance(k, type) and issubclass(k, nn.Module)]
    # Lazy ones become another class with their first input.
    classes = [k for k in classes if not k.__name__.startswith('Lazy')]
    assert len(classes) > 100
    for kind, base in families.items():
        assert {k for k in classes if issubclass(k, base)} == {
            k for k in classes if issubclass(k, kind)
        }
