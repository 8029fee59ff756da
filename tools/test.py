# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tests a checkpoint: MMAction2's flags, with vared2_mmaction registered."""

import argparse
from collections.abc import Sequence

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from vared2_mmaction.apis import cli
from vared2_mmaction.apis.check import check_config
from vared2_mmaction.apis.config_file import read_config_file
from vared2_mmaction.apis.optimizing import OptimizeHook
from vared2_mmaction.checkpoints.loading import whole_networks


def test(args: argparse.Namespace) -> None:
    cfg = read_config_file(args.config)
    cli.merge_test_args(cfg, args)
    check_config(cfg, 'test')
    runner = cli.build_runner(cfg)
    if not args.no_optimize:
        runner.register_hook(OptimizeHook())
    with whole_networks():  # what answers must not be as initialised
        runner.test()
    cli.leave_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.test_parser()
    cli.add_optimize_option(parser)
    cli.run_tool(parser, test, argv)


if __name__ == '__main__':
    main()
