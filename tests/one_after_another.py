"""A study in this process, with garbage collection off: what of a run is in memory when the next is built.

python tests/one_after_another.py SPEC       prints how many runs were built, and of how many an engine was left then
"""

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data.refusal import UserError
from engine.run import main
from engine.training import trainer
from engine.training.build import Built

gc.disable()
built: list[weakref.ref[Any]] = []
left: list[int] = []
build, restore = trainer.build, trainer.restore


def watched(*given: Any) -> Built:
    left.append(sum(engine() is not None for engine in built))
    out = build(*given)
    built.append(weakref.ref(out.learner.tower_optimizer.engine))
    return out


def broken(*given: Any) -> Any:
    if len(built) == 2:
        raise UserError("the second run fails between its engine and its loop; this is a test")
    return restore(*given)


trainer.build, trainer.restore = watched, broken
code = main(["--spec", sys.argv[1]])
print(code, len(built), sum(left))
