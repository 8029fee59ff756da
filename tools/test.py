# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tests a checkpoint: MMAction2's flags, with vared2_mmaction registered."""

import argparse
from collections.abc import Sequence

from mmengine import dist
from rich.console import Console

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from vared2_mmaction.apis import cli
from vared2_mmaction.apis.check import check_config
from vared2_mmaction.apis.config_file import read_config_file
from vared2_mmaction.apis.controls import KINDS, check_controls, measure_controls, report_controls
from vared2_mmaction.apis.optimizing import OptimizeHook
from vared2_mmaction.checkpoints.loading import whole_networks
from vared2_mmaction.engine.network import network_of


def test(args: argparse.Namespace) -> None:
    cfg = read_config_file(args.config)
    cli.merge_test_args(cfg, args)
    check_config(cfg, 'test')
    if args.controls:
        cfg.compile = False  # compiled code does not see what takes the place of answers
    runner = cli.build_runner(cfg)
    if args.controls:
        check_controls(network_of(runner))
    if not args.no_optimize:
        runner.register_hook(OptimizeHook())
    with whole_networks():  # what answers must not be as initialised
        runner.test()
    if args.controls:
        found = measure_controls(runner, args.controls)
        if dist.is_main_process():
            Console().print(report_controls(found, cfg.work_dir))
    cli.leave_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.test_parser()
    cli.add_optimize_option(parser)
    parser.add_argument(
        '--controls',
        nargs='?',
        const=KINDS[0],
        choices=KINDS,
        help="also test each clip with another clip's and with the mean answers of the gates "
        '(answers, the default), or with the options that they choose, each with weight one '
        '(options); writes controls.json into the work folder',
    )
    cli.run_tool(parser, test, argv)


if __name__ == '__main__':
    main()
