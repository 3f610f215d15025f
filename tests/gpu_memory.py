"""A study in this process; what its runs and its end take of the GPU's memory: python tests/gpu_memory.py --spec ...

Prints [[peak of each run in bytes], bytes at the end] as JSON; zeros on a CPU.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from engine.run import main
from engine.study import worker

peaks: list[int] = []
carry_out = worker._carry_out


def measured(*given: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    carry_out(*given)
    peaks.append(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


worker._carry_out = measured
code = main(sys.argv[1:])
assert code == 0, code
print(json.dumps([peaks, torch.cuda.memory_allocated() if torch.cuda.is_available() else 0]))
