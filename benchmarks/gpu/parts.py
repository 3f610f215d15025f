"""The parts of `make gpu`: what each runs, for how long at most, which of them at once."""

from dataclasses import dataclass

STEP = "benchmarks/step.py"
GPU_TESTS = ("tests/test_gpu.py", "tests/test_tiles.py", "tests/test_run.py")
TESTS = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default", "--durations=5")


@dataclass(frozen=True)
class Part:
    """Words for Python, at full and at tiny size, in which SECONDS is the time that the part has; none: not at this size."""

    name: str
    full: tuple[str, ...]
    tiny: tuple[str, ...]
    seconds: float
    spare: bool = False  # may be cut off: others only go faster for it

    def limit(self, sizes: str) -> float:
        """The most that it may take."""
        return self.seconds if sizes == "full" else 170.0

    def least(self, sizes: str) -> float:
        """What must be left for it to be begun."""
        return min(20.0, self.seconds / 2) if sizes == "full" else 1.0


def _step(model: str, pairs: int, objective: str, tries: bool = True) -> Part:
    full = (STEP, "--device", "auto", f"{model}:{pairs}", "--objective", objective, "--seconds", "SECONDS")
    tiny = (STEP, "--device", "auto", "test-vit:8", "--objective", objective, "--product", "256", "--rounds", "1")
    return Part(f"step_{model}_{objective}", full, tiny if tries else (), 45.0)


def _world(name: str, pairs: str, tests: str, pixels: str, tiny: tuple[str, str, str], captioned: str = "512") -> Part:
    def words(*numbers: str) -> tuple[str, ...]:
        flags = (flag for pair in zip(("--pairs", "--tests", "--pixels"), numbers, strict=True) for flag in pair)
        return ("benchmarks/gpu/worlds.py", name, *flags, "--captioned", captioned)

    return Part(f"world_{name}", words(pairs, tests, pixels), words(*tiny), 40.0)


GROUPS: list[list[Part]] = [
    [
        _world("demo", "6000", "960", "64", ("192", "64", "32")),
        _world("lab", "40000", "640", "32", ("192", "64", "32"), "256"),
        _world("pictures", "8192", "2048", "336", ("48", "32", "64"), "1"),
    ],
    [
        Part("tests", (*TESTS, "-n", "4", *GPU_TESTS), (*TESTS, "--gpu-tests-on", "cpu", "tests/test_gpu.py", "-k",
             "norm or evaluation and vit"), 115.0),
        Part("curves", ("benchmarks/gpu/curves.py",), ("benchmarks/gpu/curves.py", "--sizes", "tiny"), 110.0),
        Part("compiled_ahead", (STEP, "--device", "auto", "RN50:256", "ViT-B-32:1024", "--objective", "mmcl", "--ahead"),
             (STEP, "--device", "auto", "test-vit:8", "--objective", "mmcl", "--ahead"), 110.0, spare=True),
    ],
    [
        Part("loss", ("benchmarks/loss.py", "--device", "cuda"),
             ("benchmarks/loss.py", "--device", "cpu", "--rows", "128,256", "--rounds", "1"), 60.0),
    ],
    [_step("RN50", 256, "mmcl")],
    [_step("ViT-B-32", 1024, "mmcl", tries=False)],
    [_step("RN50", 256, "mmcl_ssl")],
    [_step("ViT-B-32", 1024, "mmcl_ssl", tries=False)],
    [Part("loader", ("benchmarks/gpu/loader.py",), ("benchmarks/gpu/loader.py", "--sizes", "tiny"), 45.0)],
    [Part("evaluation", ("benchmarks/gpu/evaluation.py",), ("benchmarks/gpu/evaluation.py", "--sizes", "tiny"), 60.0)],
    [
        Part("miniature", ("benchmarks/gpu/miniature.py", "--seconds", "SECONDS"),
             ("benchmarks/gpu/miniature.py", "--sizes", "tiny", "--seconds", "SECONDS"), 150.0),
    ],
]  # fmt: skip


def groups(sizes: str) -> list[list[Part]]:
    """The groups, in order. At tiny size, where times mean nothing, all parts but the worlds they read run at once."""
    if sizes == "full":
        return GROUPS
    worlds, *others = GROUPS
    return [worlds, [part for group in others for part in group if part.tiny]]
