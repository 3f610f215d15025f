"""The recipe of the container image: what it says, and that its steps work in a fresh folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

RECIPE = ROOT / "configs/cluster/Dockerfile"
SHIM = """\
#!/bin/sh
# of another machine's packages only whether this one's archive has them
[ "$1" = install ] || exit 0
exec /usr/bin/apt-get --simulate --quiet=2 "$@"
"""


def steps() -> list[tuple[str, str]]:
    """(instruction, its words) of the recipe's lines."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", RECIPE.read_text(), flags=re.MULTILINE))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line]


def test_the_image_has_a_named_base_and_a_user_and_is_the_one_that_kubernetes_starts() -> None:
    of = dict(steps())
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", of["FROM"])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", of["USER"])
    installs = [words for kind, words in steps() if kind == "RUN" and "pip install" in words]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in words for words in installs)
    built = re.search(r"--file configs/cluster/Dockerfile --tag (\S+) \.", RECIPE.read_text())
    job = next(part for part in YAML(typ="safe").load_all((ROOT / "configs/cluster/kubernetes.yaml").read_text())
               if part["kind"] == "Job")  # fmt: skip
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert built is not None
    assert container["image"] == built[1]
    assert "command" not in container, "the image's own entry"
    script = f"{[words for kind, words in steps() if kind == 'WORKDIR'][0]}/engine/run.py"
    assert script in container["args"]
    assert script in of["CMD"]
    assert of["ENTRYPOINT"] == '["torchrun"]'
    assert str(pod["securityContext"]["runAsUser"]) == of["USER"].split(":")[0]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_steps_of_the_image_work_in_a_fresh_folder(tmp_path: Path, spec: Path) -> None:
    """Its COPY and RUN lines, with this Python in place of the image's; apt-get only says whether it knows the packages."""
    tools, place = tmp_path / "tools", tmp_path / "opt"
    tools.mkdir()
    place.mkdir()
    (tools / "python3").symlink_to(os.path.realpath(sys.executable))
    if Path("/usr/bin/apt-get").exists():
        (tools / "apt-get").write_text(SHIM)
        (tools / "apt-get").chmod(0o755)
    else:
        pytest.skip("the image's first step needs apt-get")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "PYTHON"))}
    env = {**kept, "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    for kind, words in steps():
        if kind == "COPY":
            *sources, _ = shlex.split(words)
            files = subprocess.run(["git", "ls-files", *sources], cwd=ROOT, capture_output=True, text=True, check=True)
            assert files.stdout
            for name in filter(os.path.isfile, (ROOT / line for line in files.stdout.splitlines())):
                target = place / name.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(name, target)
        elif kind == "RUN":
            done = subprocess.run(words, shell=True, cwd=place, env=env, capture_output=True, text=True, check=False)  # noqa: S602
            assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    bin_folder = place / ".venv/bin"
    frozen = subprocess.run(
        [bin_folder / "python", "-m", "pip", "freeze"], env=env, capture_output=True, text=True, check=True
    )
    wanted = set((ROOT / "constraints.txt").read_text().split())
    names = {line.split("==")[0] for line in wanted}
    other = [line for line in frozen.stdout.split() if line.split("==")[0] in names and line not in wanted]
    assert not other, "versions that constraints.txt does not name"
    command = [bin_folder / "torchrun", "--standalone", "--nproc-per-node", "2", place / "engine/run.py"]
    run = subprocess.run(
        [*command, "--spec", str(spec), "--stage", "pretrain"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert list((tmp_path / "runs/tiny").glob("pretrain-*/finished.json"))
