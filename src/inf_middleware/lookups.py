"""From the options that concern accounts to the look-up of a stack."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from inf_middleware.accounts.address import AddressAccounts, Networks
from inf_middleware.accounts.cached import CachedAccounts
from inf_middleware.accounts.mapping import MappingAccounts
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.tiers import Tiers
from inf_middleware.ports import AccountLookup


@runtime_checkable
class _NamesLevels(Protocol):
    """A look-up that knows levels by name before the first request."""

    def check_levels(self, tiers: Tiers) -> None: ...


def build_lookup(
    accounts: Any, *, anonymous: str | None, ttl_s: float, networks: Networks, tiers: Tiers
) -> AccountLookup | None:
    """Return the look-up that `accounts` means; None where nobody can be an account.

    Raises:
        ConfigError: An account names a level that does not exist.
    """
    if accounts is None:
        if anonymous is None:
            return None
        try:
            return AddressAccounts(tiers.named(anonymous).name, networks)
        except ConfigError as error:
            raise ConfigError(f"anonymous: {error}") from None
    if isinstance(accounts, Mapping):
        return MappingAccounts(accounts, tiers)
    if isinstance(accounts, _NamesLevels):
        accounts.check_levels(tiers)
    lookup: AccountLookup = accounts
    return CachedAccounts(lookup, ttl_s=ttl_s) if getattr(lookup, "cacheable", True) else lookup


def check_levels(
    accounts: Any, lookup: AccountLookup | None, read: Mapping[Any, Any], tiers: Tiers
) -> None:
    """See that what `accounts` means goes together with levels; `read` is what files say now.

    Raises:
        ConfigError: An account, or the level of callers without one, is of none of them.
    """
    file = getattr(accounts, "file", None)
    for known in (read.get(file), accounts, lookup):
        if isinstance(known, _NamesLevels):
            known.check_levels(tiers)
            return
