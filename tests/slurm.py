"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, in process and mount namespaces of their own.
Whatever they started ends with the process that started them, however that ends."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import forked

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
CONF = """\
ClusterName=antidote
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmdSpoolDir={home}/%n.spool
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000
PartitionName=usual Nodes=n1,n2 Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n1,n2 State=UP PriorityTier=9 PreemptMode=OFF
"""
DAEMONS = """\
set -e
cd {home}
mount --bind hosts /etc/hosts
munged --force --foreground --socket=$PWD/munge.socket --key-file=$PWD/munge.key --pid-file=$PWD/munged.pid \
    --log-file=$PWD/munged.log --seed-file=$PWD/munge.seed &
until munge --socket=$PWD/munge.socket --no-input --output=/dev/null; do sleep 0.1; done
slurmctld -D -f $PWD/slurm.conf -L $PWD/slurmctld.log &
for node in n1 n2; do slurmd -D -N $node -f $PWD/slurm.conf -L $PWD/$node.log & done
wait
"""


def missing() -> str:
    """Why there can be no Slurm here; '' if nothing stands in its way."""
    lacks = [name for name in NEEDED if shutil.which(name) is None]
    if lacks:
        return f"a real Slurm needs {', '.join(lacks)}: make nightly-tools"
    return "" if os.geteuid() == 0 else "a real Slurm needs root, for its namespaces"


def end_with_parent() -> None:
    """Before the exec of a child: it is killed when this process ends, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Slurm:
    """Runs from its making until `end`; `environment` is what its commands need."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o755)
        (home / "state").mkdir()
        (home / "munge.key").write_bytes(os.urandom(128))
        (home / "munge.key").chmod(0o600)
        (home / "hosts").write_text(f"127.0.0.1 localhost n1 n2 {socket.gethostname()}\n")
        ports = [forked.free_port() for _ in range(3)]
        (home / "slurm.conf").write_text(CONF.format(host=socket.gethostname().split(".")[0], ports=ports, home=home))
        self.environment = forked.environment(SLURM_CONF=str(home / "slurm.conf"), OMP_NUM_THREADS="1")
        words = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            DAEMONS.format(home=home),
        ]
        with (home / "daemons.log").open("w") as log:
            self.process = subprocess.Popen(
                words, env=self.environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_parent
            )
        deadline = time.monotonic() + 60
        while self.call("sinfo", "--noheader", "--format=%T", "--partition=usual", check=False).split() != ["idle"]:
            assert self.process.poll() is None, (home / "daemons.log").read_text()
            assert time.monotonic() < deadline, (home / "slurmctld.log").read_text()
            time.sleep(0.2)

    def call(self, *words: str, cwd: Path | None = None, check: bool = True) -> str:
        """What one of its commands prints."""
        done = subprocess.run(
            words, cwd=cwd, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def end(self) -> None:
        """Ends its daemons and all of their jobs."""
        self.process.kill()
        self.process.wait()
