#!/usr/bin/env bash
# NODE_RANK=0 MASTER_ADDR=node1 bash configs/cluster/no_ssh.sh specs/cc6m.yaml [--stage pretrain ...]
# As hostfile.sh where machines may not log into each other: the same command on every machine of the hostfile, with its place
# in it, from 0, as NODE_RANK. Kubernetes, cloud start-up scripts.
set -euo pipefail
spec="${1:?give a spec, for example specs/cc6m.yaml}"
shift
exec deepspeed --hostfile "${HOSTFILE:-$(dirname "$0")/hostfile}" --no_ssh \
    --node_rank "${NODE_RANK:?give the place of this machine in the hostfile, from 0}" \
    --master_addr "${MASTER_ADDR:?give the first machine of the hostfile}" --master_port "${MASTER_PORT:-29500}" \
    engine/run.py --spec "$spec" "$@"
