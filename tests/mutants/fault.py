"""What a deliberate fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """`before` becomes `after` in a file of the package; the test `caught_by` must fail then."""

    name: str
    file: str  # below src/inf_middleware
    before: str
    after: str
    caught_by: str  # as pytest names it

    def put_into(self, text: str) -> str:
        """Return the file's text with the fault; raises ValueError where it is not as quoted."""
        if (found := text.count(self.before)) != 1:
            raise ValueError(
                f"{self.file} has {found} times, and should have once: {self.before!r}"
            )
        return text.replace(self.before, self.after)
