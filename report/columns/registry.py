"""All kinds of columns, in the order in which the open matrix has them."""

from report.columns.audit import Audit
from report.columns.cleaner import Cleaner
from report.columns.contract import Kind
from report.columns.detector import Detector
from report.columns.persistence import Persistence
from report.columns.rejection import Rejection

KINDS: tuple[Kind, ...] = (Cleaner(), Detector(), Audit(), Rejection(), Persistence())
