# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tensors that share memory have the shapes of others and do not overlap."""

import pytest
import torch

from vared2_mmaction.ops.parts import parts_like


@pytest.mark.parametrize('multiple', [1, 4, 16])
def test_parts_are_like_what_they_are_made_for(multiple):
    shapes = [(3,), (2, 5), (16,), (1,), (4, 1, 3, 3), (), (0,), (7,)]
    types = [torch.float32, torch.float64]
    given = [torch.randn(shape, dtype=types[i % 3 == 2]) for i, shape in enumerate(shapes)]
    made = list(parts_like(given, torch.zeros, multiple))
    assert len(made) == len(given)
    for number, (part, like) in enumerate(zip(made, given, strict=True)):
        assert (part.shape, part.dtype) == (like.shape, like.dtype)
        assert part.storage_offset() % multiple == 0
        assert part.is_contiguous()
        assert not part.any()
        part.fill_(number)
    assert all((part == number).all() for number, part in enumerate(made))
    assert len({part.untyped_storage().data_ptr() for part in made}) == 2
    assert list(parts_like([], torch.empty)) == []
