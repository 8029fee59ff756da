# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Steps of what trains and tests several networks, each skipped where the file that it leaves is
there. An interrupted training goes on from its last checkpoint."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from vared2_mmaction.checkpoints.resuming import is_whole


def run(*command: str) -> None:
    """Run one of the tools, its output visible; stop where it fails."""
    subprocess.run([sys.executable, *command], check=True)


def epochs_of(config: Path) -> int:
    """Epochs that a config trains for."""
    return Config.fromfile(config).train_cfg.max_epochs


def train(config: Path, checkpoint: Path, seed: int, changes: Sequence[str] = ()) -> None:
    """Train a network, in the folder of its final checkpoint; ``changes`` are --cfg-options."""
    if is_whole(checkpoint):
        print(f'{checkpoint} is there: nothing to train')
        return
    where = ['--work-dir', str(checkpoint.parent), '--seed', str(seed)]
    options = ['--cfg-options', *changes] if changes else []
    run('tools/train.py', str(config), *where, '--resume', *options)


def test(config: Path, checkpoint: Path, *flags: str) -> Path:
    """Test a network, and return the dump of its predictions, which lies by the checkpoint."""
    dump, partial = (checkpoint.with_name(name) for name in ('test.pkl', 'partial.pkl'))
    if dump.exists() and dump.stat().st_mtime > checkpoint.stat().st_mtime:
        print(f'{dump} is there: nothing to test')
        return dump
    where = ['--work-dir', str(checkpoint.parent), '--dump', str(partial)]
    run('tools/test.py', str(config), str(checkpoint), *where, *flags)
    return partial.replace(dump)
