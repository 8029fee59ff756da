#!/usr/bin/env bash
# Trains under Slurm, one process a GPU.
#
# Environment: GPUS (8) in all, GPUS_PER_NODE (8), CPUS_PER_TASK (5), MASTER_PORT (drawn at random),
# SRUN_ARGS for further arguments of srun; PYTHON for the interpreter.
set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [arguments of train.py]" >&2
    exit 2
fi

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
export MASTER_PORT="${MASTER_PORT:-$((12000 + RANDOM % 20000))}"
read -r -a SRUN_EXTRA <<< "${SRUN_ARGS:-}"

exec srun --partition="$1" --job-name="$2" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_EXTRA[@]+"${SRUN_EXTRA[@]}"} \
    "${PYTHON:-python}" -u "$ROOT/tools/train.py" "$3" --launcher slurm "${@:4}"
