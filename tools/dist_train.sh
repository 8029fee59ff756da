#!/usr/bin/env bash
# Trains on several GPUs of one or more machines, one process a GPU.
#
# Environment: NNODES, NODE_RANK, MASTER_ADDR and PORT for several machines or several runs on one;
# PYTHON for the interpreter.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: $0 CONFIG GPUS [arguments of train.py]" >&2
    exit 2
fi

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" "$ROOT/tools/train.py" "$1" --launcher pytorch "${@:3}"
