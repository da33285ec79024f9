#!/usr/bin/env bash
# Tunes a ranker on a GPU cluster under Slurm: one process per GPU, all with the same command.
#
#   sbatch --nodes=1 --gpus-per-node=8 tools/launch/slurm.sh CONFIG
#
# STAGE=retrieve or another runs that stage instead.
#
# Slurm sends SIGTERM two minutes before the time limit: the run saves a checkpoint, and the requeued
# job resumes from it.
#SBATCH --job-name=palr
#SBATCH --ntasks-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=palr-%j.log
set -euo pipefail

config=${1:?name a config whose mesh is the GPUs}
# The virtual environment with palr-jax[cuda], on a disk that all nodes see.
source "${VENV:-venv}/bin/activate"
# A node that fails stops the others.
exec srun --kill-on-bad-exit=1 palr "${STAGE:-finetune}" --config "$config"
