"""What an H100 would need to run each Triton kernel, compiled for it without one, for tests/test_tiles.py:
python tests/triton_registers.py.

Prints {kernel: {"spilled": bytes, "shared": bytes, "programs": how many a processor holds, "tensor_cores": bool}} as JSON.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:1] = [str(Path(__file__).resolve().parent.parent)]

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from objectives import triton_blocks

H100 = GPUTarget("cuda", 90, 32)
REGISTERS, SHARED = 65536, 227 << 10  # of a processor
MASKS = {"left_ids": "*i64", "right_ids": "*i64", "left_counts": "*u8", "right_counts": "*u8"}
NUMBERS = ("m", "n", "left_stride", "right_stride", "shift")


def source(kernel: Any, dtype: str, precision: str, shape: triton_blocks.Shape, masks: bool) -> ASTSource:
    """The kernel for D = 512, pointers and lengths that 16 divides."""
    fixed: dict[str, Any] = {
        "D": 512, "ROWS": shape.rows, "COLUMNS": shape.columns, "STEP": shape.step, "PRECISION": precision, "WIDEN": False,
        **({} if masks else dict.fromkeys(MASKS)),
    }  # fmt: skip
    types = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(NUMBERS, "i32") | MASKS
    types |= dict.fromkeys(("left", "right", "slope"), f"*{dtype}") | dict.fromkeys(fixed, "constexpr")
    types = {name: types[name] for name in kernel.arg_names}
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(types.items())
        if kind != "constexpr" and name != "shift"
    }
    return ASTSource(kernel, types, {name: value for name, value in fixed.items() if name in types}, even)


def needs(kernel: Any, dtype: str, precision: str, shape: triton_blocks.Shape, masks: bool) -> dict[str, Any]:
    options = {"num_warps": shape.warps, "num_stages": shape.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source(kernel, dtype, precision, shape, masks), target=H100, options=options)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.ptx").write_text(compiled.asm["ptx"])
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", "kernel.ptx", "-o", "kernel.o"]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    text = said.stdout + said.stderr
    found = {what: int(re.findall(rf"(\d+) {what}", text)[0]) for what in ("registers", "bytes spill stores")}
    shared = compiled.metadata.shared
    programs = min(REGISTERS // (found["registers"] * 32 * shape.warps), SHARED // (shared + 1024))
    return {
        "spilled": found["bytes spill stores"],
        "shared": shared,
        "programs": programs,
        "tensor_cores": "wgmma" in compiled.asm["ptx"],
    }


if __name__ == "__main__":
    kernels = (triton_blocks._statistics_kernel, triton_blocks._slope_kernel, triton_blocks._sigmoid_kernel)
    kinds = (
        ("bf16", "ieee", triton_blocks.NARROW),
        ("fp32", "tf32x3", triton_blocks.TF32),
        ("fp32", "ieee", triton_blocks.EXACT),
    )
    out = {}
    for dtype, precision, shapes in kinds:
        for kernel, shape in zip(kernels, shapes, strict=True):
            for masks in (False, True)[kernel is kernels[2] :]:
                name = f"{kernel.__name__} {dtype if dtype == 'bf16' else precision} {'masks' if masks else 'plain'}"
                out[name] = needs(kernel, dtype, precision, shape, masks)
    print(json.dumps(out))
