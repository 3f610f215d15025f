#!/usr/bin/env bash
# bash configs/cluster/hostfile.sh specs/cc6m.yaml [--stage pretrain ...]
# All GPUs of the machines in the hostfile beside this script, by DeepSpeed's launcher over ssh; run it on one of them.
# HOSTFILE names another list; each line is `NAME slots=GPUS`.
set -euo pipefail
spec="${1:?give a spec, for example specs/cc6m.yaml}"
shift
exec deepspeed --hostfile "${HOSTFILE:-$(dirname "$0")/hostfile}" engine/run.py --spec "$spec" "$@"
