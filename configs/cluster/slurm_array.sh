#!/usr/bin/env bash
# sbatch configs/cluster/slurm_array.sh specs/cc6m.yaml
# The cleaning runs of a study as a job array, one GPU each: every task takes one run after another from the study's folder
# until none is left, so their number is how many go on at once, not how many runs there are. Pre-train before
# (configs/cluster/slurm.sh specs/cc6m.yaml --stage pretrain). Slurm warns five minutes before the end: the run saves, exits with
# 143, and its task is put back into the queue. `sweep.executor: slurm` in a spec submits such an array by itself.
#SBATCH --job-name=antidote-clean
#SBATCH --array=0-7
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source .venv/bin/activate
spec="${1:?give a spec, for example specs/cc6m.yaml}"
shift
srun --ntasks=1 --kill-on-bad-exit=1 python engine/run.py --spec "$spec" --stage clean --set sweep.executor=here "$@"
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    exit 0
fi
exit "$code"
