"""Accounts of users that Starlette's AuthenticationMiddleware has found already."""

from collections.abc import Callable
from typing import Any

from starlette.requests import HTTPConnection

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.tiers import Account, Tier, Tiers


class ScopeAccounts:
    """Takes `scope["user"]` for the account: its `identity`, on one level for all.

    `account` makes the account of an authenticated user instead; None from it is a 401, as a user
    who is not authenticated is. AuthenticationMiddleware must stand outside of ours.
    """

    cacheable = False  # the user is in the scope already

    def __init__(
        self,
        *,
        tier: str | Tier | None = None,
        account: Callable[[Any], Account | None] | None = None,
    ) -> None:
        if account is not None and not callable(account):
            raise ConfigError(f"account is {account!r}; give a function from user to Account")
        if account is not None and tier is not None:
            raise ConfigError("tier and account are given; the account brings its own level")
        self._tier = tier
        self._account = account

    def check_levels(self, tiers: Tiers) -> None:
        """See that the level for all exists.

        Raises:
            ConfigError: It does not.
        """
        if isinstance(self._tier, str):
            tiers.named(self._tier)

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account of the user; the key does not matter.

        Raises:
            ConfigError: There is no user in the scope, or one without identity.
        """
        user = connection.scope.get("user")
        if user is None:
            raise ConfigError(
                "there is no scope['user']: add AuthenticationMiddleware outside of ours, which is"
                " to say, after it"
            )
        if not user.is_authenticated:
            return None
        if self._account is not None:
            return self._account(user)
        try:
            identity = user.identity
        except NotImplementedError:  # Starlette's SimpleUser had none for long
            identity = getattr(user, "username", None)
        if not isinstance(identity, str) or not identity:
            raise ConfigError(
                f"a {type(user).__name__} has no identity; give ScopeAccounts(account=function)"
            )
        return Account(identity, tier=self._tier)
