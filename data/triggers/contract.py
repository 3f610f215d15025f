"""What every trigger promises.

A trigger section has `build(seed)`, which returns a picklable function `mark(images, draws)`:
images uint8 [B, 3, H, W] and one integer per image in, uint8 [B, 3, H, W] out, the input untouched; image i depends on
images[i] and draws[i] alone, so a batch and its pictures one by one give the same bytes; any H and W.
"""

from collections.abc import Callable, Sequence

import numpy as np

Mark = Callable[[np.ndarray, Sequence[int]], np.ndarray]
