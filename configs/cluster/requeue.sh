#!/usr/bin/env bash
# bash configs/cluster/requeue.sh srun ... within a Slurm job, as slurm.sh and slurm_array.sh do: the exit code is that of srun.
# A step that was asked to save and did (143) goes back into the queue, unless somebody cancelled the job. So does one that
# still runs half a minute before its time is up: whatever hinders it, its next start goes on from a checkpoint.
set -uo pipefail
job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
job="${job:-$SLURM_JOB_ID}" # of an array's task the latter may be the whole array's number
trap : TERM # is meant for the step, which Slurm tells as well

ask() { squeue --noheader --jobs="$job" --format="$1"; }

watch() {
    trap '[ -z "${nap:-}" ] || kill "$nap"; exit' TERM
    while :; do # seconds left, of days-hours:minutes:seconds; nothing where there is no limit, or no answer
        left=$(ask %L | awk -F '[-:]' '/^[-:0-9]+$/ { for (i = NF; i; i--) { s += $i * (j < 3 ? 60 ^ j : 86400); j++ } print s }')
        [ "${left:-630}" -gt 30 ] || break
        sleep $((${left:-630} - 30)) &
        nap=$!
        wait "$nap"
    done
    echo "half a minute left: job $job goes back into the queue" >&2
    scontrol requeue "$job"
}

watch &
watcher=$!
"$@"
code=$?
kill "$watcher"
if [ "$code" -eq 143 ] && [ "$(ask %T)" = RUNNING ]; then
    echo "job $job goes back into the queue" >&2
    scontrol requeue "$job"
fi
exit "$code"
