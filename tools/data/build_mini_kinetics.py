# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Makes MMAction2's video lists of Mini-Kinetics-200 from its published split files."""

import argparse
import sys
from pathlib import Path

from vared2_mmaction.datasets.mini_kinetics import (
    DELIMITERS,
    MiniKineticsError,
    build_lists,
    print_report,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--train-csv', type=Path, required=True, help='for example train_k200.csv')
    parser.add_argument('--val-csv', type=Path, required=True, help='for example val_k200.csv')
    parser.add_argument(
        '--videos', type=Path, nargs='+', required=True, help='folders that hold Kinetics videos'
    )
    parser.add_argument('--out', type=Path, required=True, help='folder to write the lists to')
    parser.add_argument(
        '--delimiter',
        choices=['auto', *DELIMITERS],
        default='auto',
        help='what parts path and label; auto (the default) takes the first of '
        f'{", ".join(DELIMITERS)} that no path contains',
    )
    args = parser.parse_args()
    try:
        report = build_lists(args.train_csv, args.val_csv, args.videos, args.out, args.delimiter)
    except MiniKineticsError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print_report(report)
    return 0 if report.complete_enough else 1


if __name__ == '__main__':
    sys.exit(main())
