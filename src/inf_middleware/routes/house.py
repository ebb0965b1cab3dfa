"""What routes work with: the stack around them, else what options and settings say."""

from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from inf_middleware.around import Around, around
from inf_middleware.beside import Beside


class House:
    """Finds it anew for each request: stacks come and go, and files change.

    Raises:
        ConfigError: An option or setting cannot hold.
    """

    def __init__(self, member: str, options: Mapping[str, Any]) -> None:
        self.beside = Beside(member, options)
        self._looks_around = not options

    async def of(self, scope: Scope) -> Around:
        """Return what holds for a request."""
        found = around(scope) if self._looks_around else None
        return await (found or self.beside.around()).in_force()
