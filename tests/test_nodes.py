"""Several machines: two hosts made of network namespaces, each with an address of its own; what Slurm tells; launch
files."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import forked
import psutil
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, antidote, assert_close, environment, journals, settings
from slurm import end_with_parent

from data.refusal import UserError
from engine.distributed import world
from engine.distributed.rank import rank_from_env
from engine.distributed.watchdog import Watchdog

HOSTS = {"antidote-a": "10.213.77.1", "antidote-b": "10.213.77.2"}


def _ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Two namespaces joined by a cable, and their addresses; skips where that is not permitted."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and root")
    names = list(HOSTS)
    try:
        made = all(_ip("netns", "add", name) for name in names)
        cable = ["link", "add", "antidote0", "netns", names[0], "type", "veth", "peer", "antidote0", "netns", names[1]]
        made = made and _ip(*cable)
        for name, address in HOSTS.items():
            made = made and _ip("-n", name, "address", "add", f"{address}/24", "dev", "antidote0")
            made = made and all(_ip("-n", name, "link", "set", device, "up") for device in ("lo", "antidote0"))
        if not made:
            pytest.skip("network namespaces are not permitted here")
        yield HOSTS
    finally:
        for name in names:
            _ip("netns", "delete", name)


def inside(host: str, words: list[str], folder: Path, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *words], cwd=folder, env=environment(GLOO_SOCKET_IFNAME="antidote0", **more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


SETS = settings("pretrain.epochs=1", "clean=null")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "srun"])
def test_two_hosts_write_the_journal_of_one(hosts: dict[str, str], spec: Path, launcher: str) -> None:
    """DeepSpeed's --no_ssh, torchrun, and the environment that srun gives; the other address is the only way between
    them."""
    one = antidote("--spec", str(spec), *SETS, cwd=spec.parent)
    assert one.returncode == 0, one.stderr
    expected = journals(spec.parent / "runs/tiny")
    shutil.rmtree(spec.parent / "runs/tiny")
    (spec.parent / "hosts").write_text("".join(f"{address} slots=1\n" for address in hosts.values()))
    first, script = next(iter(hosts.values())), str(ROOT / "engine/run.py")
    meet = ["--master_addr", first, "--master_port", "29517"]
    started = []
    for number, host in enumerate(hosts):
        more: dict[str, str] = {}
        if launcher == "deepspeed":
            words = ["deepspeed", "--hostfile", "hosts", "--no_ssh", "--node_rank", str(number), *meet, script]
        elif launcher == "torchrun":
            node = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number), "--master-addr", first]
            words = [sys.executable, "-m", "torch.distributed.run", *node, "--master-port", "29517", script]
        else:
            words = [sys.executable, script]
            more = {"SLURM_PROCID": str(number), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "4711"}
            more |= {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": ",".join(hosts.values())}
        started.append(inside(host, [*words, "--spec", str(spec), *SETS], spec.parent, **more))
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert_close(journals(spec.parent / "runs/tiny"), expected, 1e-5)


SSHD = """\
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/{host}.pid
ListenAddress {address}
StrictModes no
UsePAM no
SetEnv GLOO_SOCKET_IFNAME=antidote0 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
"""
SSH = """\
#!/bin/sh
exec /usr/bin/ssh -i {folder}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"
"""


@pytest.fixture
def logins(hosts: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """A sshd on each host, and the PATH with an ssh that has the key to them."""
    lacks = [
        name for name in ("sshd", "pdsh", "ssh-keygen") if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]
    if lacks:
        pytest.skip(f"a launch over ssh needs {', '.join(lacks)}: make nightly-tools")
    folder = tmp_path / "ssh"
    folder.mkdir()
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "ssh").write_text(SSH.format(folder=folder))
    (folder / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd asks for it
    daemons = []
    try:
        for host, address in hosts.items():
            (folder / host).write_text(SSHD.format(folder=folder, host=host, address=address))
            words = ["ip", "netns", "exec", host, "/usr/sbin/sshd", "-D", "-e", "-f", str(folder / host)]
            daemons.append(subprocess.Popen(words, stderr=subprocess.DEVNULL, preexec_fn=end_with_parent))
        yield f"{folder}:{environment()['PATH']}"
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()


@pytest.mark.slow
def test_a_launch_over_ssh_writes_the_journal_of_one(hosts: dict[str, str], logins: str, spec: Path) -> None:
    """hostfile.sh, by pdsh and ssh from the first host to both."""
    (spec.parent / "alone").mkdir()
    one = antidote("--spec", str(spec), *SETS, cwd=spec.parent / "alone")
    assert one.returncode == 0, one.stderr
    (spec.parent / "hosts").write_text("".join(f"{address} slots=1\n" for address in hosts.values()))
    for name in ("configs", "engine"):
        (spec.parent / name).symlink_to(ROOT / name)
    words = ["bash", "configs/cluster/hostfile.sh", str(spec), *SETS]
    process = inside("antidote-a", words, spec.parent, PATH=logins, HOSTFILE="hosts")
    said = process.communicate()
    assert process.returncode == 0, said
    (card,) = (spec.parent / "runs/tiny").glob("*/card.json")
    assert json.loads(card.read_text())["processes"] == 2
    assert_close(journals(spec.parent / "runs/tiny"), journals(spec.parent / "alone/runs/tiny"), 1e-5)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node[03-07,11],other", "node03"), ("gpu-1,gpu-2", "gpu-1"), ("a100", "a100"), ("rack2n[5,7]", "rack2n5")],
)
def test_ranks_under_srun_meet_at_the_first_host(monkeypatch: pytest.MonkeyPatch, nodes: str, first: str) -> None:
    monkeypatch.delenv("RANK", raising=False)
    variables = {"SLURM_STEP_NODELIST": nodes, "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
    for name, value in {**variables, "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_JOB_ID": "123456"}.items():
        monkeypatch.setenv(name, value)
    assert rank_from_env() == (9, 16, 1, 8)
    assert world.rendezvous(16) == (first, 20_000 + 123456 % 20_000)


def test_a_port_that_another_study_holds_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, on both kinds of address, by every rank of that machine; not the port of a rank 0 of the same launch."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")):
        with socket.create_server((address, 0), family=family) as listener:
            port = listener.getsockname()[1]
            world.refuse_taken_port(port, 1, 1)  # it listens itself: of this launch
            world.refuse_taken_port(port, 2, 0)  # on another machine than rank 0
            with monkeypatch.context() as other_launch:
                other_launch.setattr(os, "getppid", lambda: -1)
                for rank in (0, 1):
                    with pytest.raises(UserError, match=f"port {port} of .*deepspeed --master_port "):
                        world.refuse_taken_port(port, rank, rank)
            with monkeypatch.context() as torchrun:
                torchrun.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
                world.refuse_taken_port(port, 0, 0)
    world.refuse_taken_port(port, 0, 0)  # free again
    world.refuse_taken_port(port, 1, 1)


def test_a_listener_that_is_not_yet_known_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil lists files before sockets: a rank 0 that begins to listen in between is at first nobody's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        known = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
        looks = iter([[known[0]._replace(pid=None)], known])
        monkeypatch.setattr(psutil, "net_connections", lambda kind: next(looks))
        world.refuse_taken_port(port, 1, 1)
        monkeypatch.setattr(psutil, "net_connections", lambda kind: [known[0]._replace(pid=None)])  # another user's
        with pytest.raises(UserError, match="process \\? listens there"):
            world.refuse_taken_port(port, 1, 1)


def test_each_machine_says_what_it_lacks_before_the_ranks_have_met(tmp_path: Path) -> None:
    """A spec that a second machine does not have, and two ranks there: one sentence, by the first of them."""
    command = [sys.executable, str(ROOT / "engine/run.py"), "--spec", str(tmp_path / "none.yaml")]
    for local_rank, sentences in (("0", 1), ("1", 0)):
        place = {"RANK": str(2 + int(local_rank)), "WORLD_SIZE": "4", "LOCAL_SIZE": "2", "LOCAL_RANK": local_rank}
        done = forked.run(command, 60, cwd=tmp_path, env=environment(**place))
        assert (done.returncode, done.stderr.count("error")) == (2, sentences), done.stderr
        assert "none.yaml" in done.stderr or not sentences


def test_a_batch_step_without_srun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "16")
    assert rank_from_env() == (0, 1, 0, 1)


def test_a_process_that_sees_its_own_gpu_alone_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for seen, devices in ((1, [0, 0, 0, 0]), (4, [0, 1, 2, 3]), (8, [0, 1, 2, 3])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda seen=seen: seen)
        assert [world.own_device(local_rank).index for local_rank in range(4)] == devices
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert world.own_device(3).type == "cpu"


def test_two_ranks_on_one_gpu_are_refused_and_ranks_that_each_see_their_own_are_not() -> None:
    world.refuse_shared_devices([("a", "uuid-1"), ("a", "uuid-2"), ("b", "uuid-1")])
    with pytest.raises(UserError) as caught:  # torchrun with four processes, two GPUs
        world.refuse_shared_devices([("a", f"uuid-{rank % 2}") for rank in range(4)])
    assert str(caught.value) == (
        "ranks 0 and 2 are both on GPU uuid-0 of a, where 4 processes see 2 GPUs; start one process a GPU, for example with "
        "deepspeed --num_gpus 2"
    )


def test_a_rank_that_stops_is_told_from_those_that_wait_at_the_same_step_or_behind_it() -> None:
    store = dist.HashStore()
    watchdogs = [Watchdog(rank, 4, 0.2, store) for rank in range(4)]
    try:
        for watchdog in watchdogs:
            watchdog.limit, watchdog.beats = 1e9, 7
        assert watchdogs[0].missing() == ""
        watchdogs[1].end()  # as SIGSTOP does: it stands at the same step and says nothing more
        assert watchdogs[0].missing().startswith("rank 1 on ")
        assert ", " not in watchdogs[0].missing()
        watchdogs[3].beats = 6  # alive, and late
        time.sleep(0.2)
        assert [who.split()[1] for who in watchdogs[2].missing().split(", ")] == ["1", "3"]
    finally:
        for watchdog in watchdogs:
            watchdog.end()


def test_the_job_is_valid_yaml_and_the_hostfile_a_list_of_slots() -> None:
    from ruamel.yaml import YAML

    folder = ROOT / "configs/cluster"
    kinds = [part["kind"] for part in YAML(typ="safe").load_all((folder / "kubernetes.yaml").read_text())]
    assert kinds == ["Service", "Job"]
    lines = [line for line in (folder / "hostfile").read_text().splitlines() if not line.startswith("#")]
    assert all(line.split()[1].startswith("slots=") for line in lines)
