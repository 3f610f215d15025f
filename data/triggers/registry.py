"""The registry of triggers: one file and one entry each."""

from data.triggers.blend import Blend
from data.triggers.checker import Checker
from data.triggers.filter import Filter
from data.triggers.patch import Patch
from data.triggers.sine import Sine
from data.triggers.solid import Solid
from data.triggers.stripes import Stripes
from data.triggers.tensor import Tensor
from data.triggers.text import Text
from data.triggers.triangles import Triangles
from data.triggers.warp import Warp

Single = Patch | Solid | Checker | Blend | Sine | Warp | Stripes | Triangles | Text | Filter | Tensor
