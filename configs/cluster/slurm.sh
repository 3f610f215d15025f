#!/usr/bin/env bash
# sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 configs/cluster/slurm.sh specs/cc6m.yaml [--stage ...]
# One task a GPU; on nodes without GPUs leave --gpus-per-node out. sbatch's own options override the #SBATCH lines below, and so
# do its variables, such as SBATCH_PARTITION and SBATCH_ACCOUNT; nothing here needs an edit. Slurm warns five minutes before the
# end: the run saves, exits with 143, and goes back into the queue, where it goes on from its checkpoint.
#SBATCH --job-name=antidote
#SBATCH --nodes=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
spec="${1:?give a spec, for example specs/cc6m.yaml}"
options="--nodes=${SLURM_JOB_NUM_NODES:-1}${SLURM_NTASKS_PER_NODE:+ --ntasks-per-node=$SLURM_NTASKS_PER_NODE}${SLURM_GPUS_PER_NODE:+ --gpus-per-node=$SLURM_GPUS_PER_NODE}"
options="$options${SLURM_CPUS_PER_TASK:+ --cpus-per-task=$SLURM_CPUS_PER_TASK}"
export ANTIDOTE_COMMAND="sbatch $options configs/cluster/slurm.sh $*" # which a run names where the same command goes on
shift
source .venv/bin/activate || exit 2
[ -n "${SLURM_GPUS_ON_NODE:-}" ] || echo "no GPUs were asked for (sbatch --gpus-per-node=8): every task computes on a CPU" >&2
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun takes it over no longer
# ranks end by themselves when one of them does: none is killed for another's exit code while it saves or writes the report
exec bash configs/cluster/requeue.sh srun --kill-on-bad-exit=0 --wait=0 python engine/run.py --spec "$spec" "$@"
