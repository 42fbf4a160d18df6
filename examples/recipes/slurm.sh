#!/bin/bash
# Two nodes with eight GPUs each, one torchrun on each. Not run here.
#   sbatch examples/recipes/slurm.sh grpo gsm8k_qwen fsdp
#SBATCH --job-name lightrft
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 64
#SBATCH --time 24:00:00
#SBATCH --requeue
#SBATCH --signal TERM@120
set -euo pipefail
run=${RUN:-$PWD/runs/slurm-$SLURM_JOB_ID}   # on a disk that all nodes see; a job that is put back has its old number
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [ -d "$run/checkpoints" ]; then what=(--resume "$run"); else what=("$@" --run "$run"); fi
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m lightrft train "${what[@]}"
