#!/usr/bin/env bash
# Run dist_train.sh or dist_test.sh on every node of a Slurm job; the first node is the master:
#   [NNODES=1] [GPUS=8] [CPUS=64] [PORT=29500] [SRUN_ARGS=...] \
#       tools/slurm_run.sh PARTITION JOB_NAME tools/dist_train.sh CONFIG GPUS_PER_NODE [options]
# GPUS and CPUS are requested per node.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
partition=$1 job=$2
shift 2
export NNODES=${NNODES:-1} PORT=${PORT:-29500}
# shellcheck disable=SC2016,SC2086  # the nodes expand the command; SRUN_ARGS is split into words
exec srun --partition "$partition" --job-name "$job" --nodes "$NNODES" --ntasks-per-node 1 \
    --gres "gpu:${GPUS:-8}" --cpus-per-task "${CPUS:-64}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    bash -c 'export NODE_RANK=$SLURM_NODEID
             export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
             exec "$@"' _ "$@"
