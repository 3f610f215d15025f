#!/usr/bin/env bash
# sbatch --gpus-per-node=1 --cpus-per-task=8 configs/cluster/slurm_array.sh specs/cc6m.yaml
# The cleaning runs of a study as a job array, one GPU each (none without that option): every task takes one run after another
# from the study's folder until none is left, so their number is how many go on at once, not how many runs there are; --array=0-31
# gives another. Pre-train before (slurm.sh specs/cc6m.yaml --stage pretrain). Warned, or preempted, a task's run saves and the
# task goes back into the queue, as slurm.sh does. `sweep.executor: slurm` in a spec submits such an array by itself.
#SBATCH --job-name=antidote-clean
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
spec="${1:?give a spec, for example specs/cc6m.yaml}"
options="--array=${SLURM_ARRAY_TASK_MIN:-0}-${SLURM_ARRAY_TASK_MAX:-7}${SLURM_GPUS_PER_NODE:+ --gpus-per-node=$SLURM_GPUS_PER_NODE}"
options="$options${SLURM_CPUS_PER_TASK:+ --cpus-per-task=$SLURM_CPUS_PER_TASK}"
export ANTIDOTE_COMMAND="sbatch $options configs/cluster/slurm_array.sh $*" # which a run names where the same command goes on
shift
source .venv/bin/activate || exit 2
[ -n "${SLURM_GPUS_ON_NODE:-}" ] || echo "no GPU was asked for (sbatch --gpus-per-node=1): this task computes on a CPU" >&2
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun takes it over no longer
words=(--spec "$spec" --stage clean --set sweep.executor=here "$@")
exec bash configs/cluster/requeue.sh srun --ntasks=1 --kill-on-bad-exit=0 --wait=0 python engine/run.py "${words[@]}"
