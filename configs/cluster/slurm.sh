#!/usr/bin/env bash
# sbatch configs/cluster/slurm.sh specs/cc6m.yaml [--stage pretrain ...]
# One task a GPU. Slurm warns five minutes before the end: the run saves, exits with 143, and is put back into the queue,
# where the same command goes on from its checkpoint.
#SBATCH --job-name=antidote
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source .venv/bin/activate
spec="${1:?give a spec, for example specs/cc6m.yaml}"
shift
srun --kill-on-bad-exit=1 python engine/run.py --spec "$spec" "$@"
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
