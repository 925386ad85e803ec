#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One training run on several machines of a Slurm cluster, requeued until it is done.
#
#   sbatch examples/cluster/slurm.sh gta2cs_daformer_pipa --data.source_root /data/gta5 …
#   DRY_RUN=1 bash examples/cluster/slurm.sh streets_pipa        # prints what each machine would run
#
# Everything after the recipe goes to pipa_fast.train. runs/ must lie on a disk that all machines
# share. Ranks agree on one step to stop at, save, and leave when Slurm announces the end of the
# time, and the job queues itself again: the run goes on where it was (--run.resume auto).
#SBATCH --job-name=pipa_fast
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
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
export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-$per_node} / per_node))

launch=(torchrun
    --nnodes "$nodes" --nproc-per-node "$per_node"
    --rdzv-backend c10d --rdzv-id "${SLURM_JOB_ID:-0}" --rdzv-endpoint "$first:29400"
    --max-restarts 3
    -m pipa_fast.train --config "$recipe" --run.resume auto "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' srun "${launch[@]}"
    echo
    exit 0
fi

# Slurm tells this shell, which asks the ranks to stop in the way that torchrun passes on to them
# (USR1 would end torchrun itself, and NCCL takes it too), and puts the job back into the queue.
again() {
    kill -TERM "$step" 2>/dev/null || true
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
}
srun --kill-on-bad-exit=1 "${launch[@]}" &
step=$!
trap again USR1
wait "$step"
