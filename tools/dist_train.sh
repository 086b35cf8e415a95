#!/usr/bin/env bash
# Usage: tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
# Starts one process per GPU, or PROCESSES processes on the CPU if there is no GPU.
# For several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT on each of them.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 CONFIG PROCESSES [options of tools/train.py]" >&2; exit 2; }
CONFIG=$1
PROCESSES=$2
shift 2

# Use the environment created by `make env` if no other one is active.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python}
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$ROOT/${VENV:-.venv}/bin/python" ]; then
  PYTHON=$ROOT/${VENV:-.venv}/bin/python
fi

# Pass SIGUSR1 on, too, and leave the processes time to finish a step and to save a checkpoint (StopHook).
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-120}

PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" \
  --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" \
  --master_port="${PORT:-29500}" \
  --nproc_per_node="$PROCESSES" \
  "$ROOT/tools/train.py" "$CONFIG" --launcher pytorch "$@"
