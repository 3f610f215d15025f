"""Carries out several specs one after another in one process: python tests/examples.py SPEC... Prints each one's code."""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ["ANTIDOTE_WORKER_SINCE"] = "0"  # no report after each

from engine.run import main
from engine.study import ending, study

study.destroy_distributed = ending.destroy_distributed = lambda: None  # DeepSpeed keeps the process group that it met first
for spec in sys.argv[1:]:
    print(spec, main(["--spec", spec]), flush=True)
