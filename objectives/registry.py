"""The registry of objectives: one file and one entry each."""

from objectives.cyclip import Cyclip
from objectives.deep_cluster import DeepCluster
from objectives.inverted import Inverted
from objectives.mmcl import Mmcl
from objectives.mmcl_ssl import MmclSsl
from objectives.par import Par
from objectives.roclip import Roclip
from objectives.safeclip import SafeClip
from objectives.self_supervised import Ssl
from objectives.siglip import Siglip
from objectives.slip import Slip
from objectives.supervised import Supervised
from objectives.unlearn import Unlearn

Single = (
    Mmcl | Ssl | MmclSsl | Siglip | Slip | Cyclip | DeepCluster | Par | Roclip | SafeClip | Supervised | Unlearn | Inverted
)
