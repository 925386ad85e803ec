#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One training run on several machines of a Slurm cluster, requeued until it is done.
#
#   sbatch examples/cluster/slurm.sh gta2cs_daformer_pipa --data.source_root /data/gta5 …
#   DRY_RUN=1 bash examples/cluster/slurm.sh streets_pipa        # prints what each machine would run
#
# Everything after the recipe goes to pipa_fast.train. runs/ must lie on a disk that all machines
# share. Ranks agree on one step to stop at, save, and leave when Slurm announces the end of the
# time, or takes the machines for others, and the job queues itself again: the run goes on where it
# was (--run.resume auto).
#
# `data.batch_size` is a rank's. The published recipes have 2 images in a step, so that two GPUs with
# --data.batch_size 1 repeat them; more GPUs see larger batches at the same learning rate, another
# experiment. With four, two seeds are a better use of them: --seed 1 --run.name RECIPE-seed1.
#SBATCH --job-name=pipa_fast
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

recipe=${1:?"the name of a recipe, such as gta2cs_daformer_pipa"}
shift
nodes=${SLURM_NNODES:-1}
per_node=${SLURM_GPUS_ON_NODE:-2}
first=localhost
if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # a pipe to head might break
    first=${hosts%%$'\n'*}
fi

# With gloo, which carries what hosts agree on, a restarted group of workers finds the old one's
# store unless each has its own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# How long torchrun lets workers save, of the 180 s that Slurm gives below; 30 s unless told.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150
export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-$per_node} / per_node))
job=${SLURM_JOB_ID:-0}

launch=(torchrun
    --nnodes "$nodes" --nproc-per-node "$per_node"
    --rdzv-backend c10d --rdzv-id "$job" --rdzv-endpoint "$first:$((20000 + job % 10000))"
    --max-restarts 3
    -m pipa_fast.train --config "$recipe" --run.resume auto "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' srun "${launch[@]}"
    echo
    exit 0
fi

# A mistyped option ends the job here. The folder's status.json tells how the run ended.
folder=$(python -c 'import sys; from pipa_fast.training.config import parse
print(parse(sys.argv[1:]).run_dir)' --config "$recipe" "$@")
began=$(mktemp)

# Slurm tells this shell, which asks the ranks to stop in the way that torchrun passes on to them
# (USR1 would end torchrun itself, and NCCL takes it too). Where it tells the ranks themselves, as
# when it takes the machines for another job, they have stopped and nobody has asked this shell.
trap 'kill -TERM "$step" 2>/dev/null || true' USR1 TERM
srun --kill-on-bad-exit=1 "${launch[@]}" &
step=$!
status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do # a signal has ended the wait, not the step
    status=0
    wait "$step" || status=$?
done
if [ ! "$folder/status.json" -ot "$began" ] \
    && grep -qE '"reason": "asked by (SIG|another)' "$folder/status.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
rm -f "$began"
exit "$status"
