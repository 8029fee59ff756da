#!/usr/bin/env bash
# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
# Test, time and train on a GPU in a few minutes; see tools/gpu_check.py --help.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" tools/gpu_check.py "$@"
