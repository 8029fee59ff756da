# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Trains a model: MMAction2's flags, with vared2_mmaction registered."""

import argparse
from collections.abc import Sequence

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from vared2_mmaction.apis import cli
from vared2_mmaction.apis.check import check_config
from vared2_mmaction.apis.config_file import read_config_file


def train(args: argparse.Namespace) -> None:
    cfg = read_config_file(args.config)
    cli.merge_train_args(cfg, args)
    check_config(cfg, 'train', 'val')
    cli.build_runner(cfg).train()
    cli.leave_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    cli.run_tool(cli.train_parser(), train, argv)


if __name__ == '__main__':
    main()
