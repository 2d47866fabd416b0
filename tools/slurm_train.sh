#!/usr/bin/env bash
# Train under SLURM, on all GPUs of one or several nodes:
#
#     sbatch [sbatch options] tools/slurm_train.sh --config-file FILE OUTPUT_DIR output/NAME [KEY VALUE ...]
#
# with the options of train_net.py, from the project's folder and with its environment active. Options
# of sbatch replace those below, e.g. --nodes 2 or --gpus-per-node 4. The job may be preempted: it
# is put back into the queue, also when its time is over, and goes on at its last checkpoint. So a new
# experiment needs a new folder: the script always resumes what is in OUTPUT_DIR.
#SBATCH --job-name=lda_aqu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

# Three minutes before its time is over the job is told so: the run saves, and is queued again.
requeue() {
    scancel --signal=TERM "$SLURM_JOB_ID"
    wait "$training" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The run may be evaluating, which ends first: torchrun is to wait for longer than 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150
# One torchrun a node starts a process for each GPU; where there are none, one process.
srun torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$head_node:$((20000 + SLURM_JOB_ID % 20000))" \
    train_net.py --resume "$@" &
training=$!
wait "$training"
