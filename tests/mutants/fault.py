"""What a deliberate fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """`before` becomes `after` in a file of the package; the test `caught_by` must fail then."""

    name: str
    file: str  # below src/inf_middleware
    before: str
    after: str
    caught_by: str  # as pytest names it
