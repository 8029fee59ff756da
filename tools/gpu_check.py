# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tests, timings and a training on a GPU, in a few minutes.

Every part runs in a process of its own with a time limit, and what it has measured by then stays.
Parts that nobody times run side by side before the others. If one fails, the command fails, after
all others have run. Without a GPU what can run does: kernels by Triton's interpreter, and the
training of a network as one graph.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmaction.utils import register_all_modules
from rich.console import Console
from rich.table import Table

from benchmarking import gpu, gpu_training
from commands.cli import run_tool

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ('tests', 'fullgraph', 'mixing', 'infer', 'train', 'demo')
UNTIMED = ('tests', 'fullgraph', 'demo')
NEEDS_GPU = ('mixing', 'infer', 'train', 'demo')
TESTS = ['tests/executors/cuda', 'tests/deploy/test_training_graphs.py']


class Part(NamedTuple):
    """What runs in a process of its own."""

    section: str
    network: str = ''
    dtype: str = ''

    @property
    def name(self) -> str:
        return ' '.join(filter(None, self))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )

    def listed(known: tuple[str, ...]) -> Any:
        def read(text: str) -> tuple[str, ...]:
            chosen = tuple(text.split(','))
            if unknown := set(chosen) - set(known):
                raise argparse.ArgumentTypeError(f'expected some of {",".join(known)}: {unknown}')
            return tuple(name for name in known if name in chosen)

        return read

    add = parser.add_argument
    add('--only', type=listed(SECTIONS), default=SECTIONS, help=f'sections: {",".join(SECTIONS)}')
    networks, dtypes = tuple(gpu.NETWORKS), tuple(gpu.DTYPES)
    add('--networks', type=listed(networks), default=networks, help=','.join(networks))
    add('--dtypes', type=listed(dtypes), default=dtypes, help=','.join(dtypes))
    modes = f'of training steps: {",".join(gpu_training.MODES)}'
    add('--modes', type=listed(gpu_training.MODES), default=('eager', 'graph'), help=modes)
    add('--channels-last', action='store_true', help='train with channels innermost')
    add('--clips', type=int, nargs='+', default=[1, 16, 64], metavar='N', help='of inference')
    add('--runs', type=int, default=10, metavar='N', help='timed runs of each network')
    add('--limit', type=float, default=100, metavar='S', help='seconds for each part on a GPU')
    add('--total', type=float, default=300, metavar='S', help='seconds for all parts')
    add('--out', default='work_dirs/gpu_check.json', metavar='FILE', help='where rows are written')
    add('--tiny', action='store_true', help='small networks, on a CPU too: shows that all runs')
    add('--part', nargs=3, help=argparse.SUPPRESS)
    return parser


def parts(args: argparse.Namespace) -> Iterator[Part]:
    """What is to run, the most wanted first."""
    for section in args.only:
        if section == 'train':
            for network in args.networks:
                yield from (Part(section, network, dtype) for dtype in args.dtypes)
        elif section == 'infer':
            yield from (Part(section, 'r2plus1d', dtype) for dtype in args.dtypes)
        elif section == 'mixing':
            yield Part(section, dtype=args.dtypes[0])
        else:
            yield Part(section)


def run_part(args: argparse.Namespace, part: Part, file: Any) -> None:
    """Run a part in this process and write its rows, one a line."""
    register_all_modules()
    tiny = args.tiny or part.section == 'fullgraph'
    scale = gpu.Scale.tiny(args.runs) if tiny else gpu.Scale()
    scale.runs, scale.channels_last = args.runs, args.channels_last
    if not tiny:
        scale.inference_clips = tuple(args.clips)
    rows = {
        'fullgraph': lambda: gpu.fullgraph_rows(scale),
        'mixing': lambda: gpu_training.mixing_rows(part.dtype, scale),
        'train': lambda: gpu_training.training_rows(part.network, part.dtype, args.modes, scale),
        'infer': lambda: gpu.inference_rows(part.network, part.dtype, scale),
    }[part.section]
    for row in rows():
        file.write(json.dumps(row) + '\n')
        file.flush()


def commands(args: argparse.Namespace, part: Part, folder: Path) -> list[list[str]]:
    """What a part runs, one after the other."""
    python = [sys.executable]
    if part.section == 'tests':
        # A GPU waits for kernels to be compiled, each by one core.
        several = torch.cuda.is_available() and importlib.util.find_spec('xdist')
        options = ['-q', '-p', 'no:cacheprovider', '-x', *['-n', '4'] * bool(several)]
        return [[*python, '-m', 'pytest', *options, *TESTS]]
    if part.section == 'demo':
        data, static, own = folder / 'data', folder / 'static', folder / 'vared2'
        small = ['--train', '160', '--val', '32', '--test', '32', '--workers', '8']
        at = [f'data_root={data}', 'train_cfg.max_epochs=1', 'train_cfg.val_begin=1']
        hooks = ['custom_hooks.0.fall=1', 'custom_hooks.1.begin=0']
        for split in ('train', 'val', 'test'):
            at.append(f'{split}_dataloader.dataset.ann_file={data}/{split}.txt')
            at.append(f'{split}_dataloader.dataset.data_prefix.video={data}')
        static_config, config = (f'configs/demo/{n}_r2plus1d.py' for n in ('static', 'vared2'))
        begin = f'load_from={static}/epoch_1.pth'
        options = ['--cfg-options', *at]
        amp = ['--amp'] * torch.cuda.is_available()  # MMEngine has it there alone
        train, test = [*python, 'tools/train.py'], [*python, 'tools/test.py', config]
        return [
            [*python, 'tools/make_moving_shapes.py', str(data), *small],
            [*train, static_config, *amp, '--work-dir', str(static), *options],
            [*train, config, *amp, '--work-dir', str(own), *options, begin, *hooks],
            [*test, f'{own}/epoch_1.pth', '--work-dir', str(own), *options],
        ]
    given = [
        '--runs',
        str(args.runs),
        '--modes',
        ','.join(args.modes),
        '--out',
        str(folder / 'rows'),
    ]
    given += ['--clips', *map(str, args.clips)]
    given += ['--channels-last'] * args.channels_last + ['--tiny'] * args.tiny
    return [[*python, __file__, *given, '--part', *part]]


def execute(args: argparse.Namespace, part: Part, seconds: float) -> tuple[list[dict], str, float]:
    """Rows of a part, what went wrong, and the seconds that it took."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder, wrong = Path(name), ''
        (folder / 'rows').touch()
        for command in commands(args, part, folder):
            with open(folder / 'log', 'w+') as log:
                left = seconds - (time.monotonic() - begun)
                wrong = _run(command, log, left)
                log.seek(0)
                said = log.read()
            if part.section in ('tests', 'demo') and not wrong:
                print('\n'.join(said.splitlines()[-3:]), flush=True)
            if wrong:
                print(said[-6000:], flush=True)
                wrong = f'{wrong}: {" ".join(command)}'
                break
        rows = [json.loads(line) for line in (folder / 'rows').read_text().splitlines()]
    return rows, wrong, time.monotonic() - begun


def _run(command: list[str], log: Any, seconds: float) -> str:
    """Run a command; returns what is wrong."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        code = process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # whatever it has started too
        process.wait()
        return f'stopped after {seconds:.0f} s'
    return f'exit status {code}' if code else ''


def check(args: argparse.Namespace) -> dict[str, Any]:
    """Run all parts; the file is whole after each of them."""
    begun, has_gpu = time.monotonic(), torch.cuda.is_available()
    report: dict[str, Any] = {'environment': environment(), 'rows': [], 'failed': [], 'not_run': []}
    together: list[Part] = []
    groups = [together]
    for part in parts(args):
        if part.section in NEEDS_GPU and not has_gpu and not args.tiny:
            report['not_run'].append({'part': part.name, 'why': 'there is no GPU'})
        elif part.section in UNTIMED:
            together.append(part)
        else:
            groups.append([part])
    for group in filter(None, groups):
        left = args.total - (time.monotonic() - begun)
        if left < 5:
            why = f'--total {args.total:.0f} s'
            report['not_run'] += [{'part': part.name, 'why': why} for part in group]
            continue
        # Without a GPU nothing else waits for them, and kernels are interpreted.
        seconds = min(args.limit, left) if has_gpu else left
        with ThreadPoolExecutor(len(group)) as pool:
            running = {pool.submit(execute, args, part, seconds): part for part in group}
            for done in as_completed(running):
                _note(report, running[done], *done.result())
                _write(report, Path(args.out))
    _write(report, Path(args.out))
    return report


def _note(report: dict[str, Any], part: Part, rows: list[dict], wrong: str, taken: float) -> None:
    """Add what a part measured, and what went wrong."""
    report['rows'] += rows
    wrongs = [f'{_title(row)}: {row["error"]}' for row in rows if row.get('error')]
    wrongs += [wrong] * bool(wrong)
    report['failed'] += [{'part': part.name, 'why': why} for why in wrongs]
    print(f'{part.name}: {"failed" if wrongs else "done"} in {taken:.0f} s', flush=True)


def _write(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1))


def environment() -> dict[str, Any]:
    """Where and with what the rows are taken."""
    try:
        import triton

        kernels = triton.__version__
    except ImportError:
        kernels = None
    git = ['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'cudnn': torch.backends.cudnn.version(),
        'triton': kernels,
        'commit': commit or None,
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    }


def _title(row: dict[str, Any]) -> str:
    keys = ('section', 'network', 'dtype', 'clips', 'mode', 'what')
    return ' '.join(str(row[key]) for key in keys if key in row)


def show(report: dict[str, Any]) -> None:
    """Print one table, then what failed and what did not run."""
    console = Console(width=150)
    where = report['environment']
    title = f'{where["gpu"] or "no GPU"}, PyTorch {where["torch"]}, Triton {where["triton"]}'
    table = Table(title=f'{title}; time and memory over those of the stock network (low to high)')
    names = ('row', 'ms', 'as MMAction2 runs it', 'with the same help', 'memory', 'first step s')
    for column in (*names, 'difference'):
        table.add_column(column, justify='left' if column == 'row' else 'right')
    for row in report['rows']:
        if row.get('error') and 'ms' not in row:
            continue

        def number(key: str, row: dict[str, Any] = row, form: str = '.2f') -> str:
            value = row.get(key)
            return '' if value is None else format(value, form)

        def spread(key: str, row: dict[str, Any] = row) -> str:
            if row.get(key) is None:
                return ''
            return f'{row[key]:.2f} ({row[f"{key}_low"]:.2f} to {row[f"{key}_high"]:.2f})'

        memory = ' / '.join(filter(None, (number('memory_stock'), number('memory_same'))))
        table.add_row(
            _title(row), number('ms'), spread('time_stock'), spread('time_same'), memory,
            number('first_step_s', form='.1f'), number('difference', form='.1e'),
        )  # fmt: skip
    console.print(table)
    for kind, words in (('failed', 'FAILED'), ('not_run', 'did not run')):
        for entry in report[kind]:
            console.print(f'{words}: {entry["part"]}: {entry["why"]}', markup=False)


def run(args: argparse.Namespace) -> int:
    """The exit status is 1 where something failed."""
    if min(*args.clips, args.runs) < 1:
        raise ValueError(
            f'--clips {" ".join(map(str, args.clips))} --runs {args.runs}: expected 1 or more'
        )
    if args.part:
        with open(args.out, 'a') as file:
            run_part(args, Part(*args.part), file)
        return 0
    report = check(args)
    show(report)
    return 1 if report['failed'] else 0


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), run, argv)


if __name__ == '__main__':
    main()
