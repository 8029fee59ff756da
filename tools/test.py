# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tests a checkpoint: MMAction2's flags, with vared2_mmaction registered."""

from mmengine.config import Config

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from vared2_mmaction.apis import cli
from vared2_mmaction.apis.check import check_config
from vared2_mmaction.checkpoints.loading import whole_networks


def main() -> None:
    parser = cli.test_parser()
    args = cli.parse_args(parser)
    cfg = Config.fromfile(args.config)
    try:
        cli.merge_test_args(cfg, args)
    except ValueError as error:
        parser.error(str(error))
    check_config(cfg, 'test')
    with whole_networks():  # what answers must not be as initialised
        cli.build_runner(cfg).test()
    cli.leave_process_group()


if __name__ == '__main__':
    main()
