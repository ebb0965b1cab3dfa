"""From the options that concern accounts to the look-up of a stack."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from inf_middleware.accounts.address import AddressAccounts, Networks
from inf_middleware.accounts.cached import CachedAccounts
from inf_middleware.accounts.mapping import MappingAccounts
from inf_middleware.accounts.toml import TomlAccounts
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
        return None if anonymous is None else AddressAccounts(tiers.named(anonymous).name, networks)
    if isinstance(accounts, Mapping):
        return MappingAccounts(accounts, tiers)
    if isinstance(accounts, _NamesLevels):
        accounts.check_levels(tiers)
    if isinstance(accounts, TomlAccounts):
        accounts.follow(tiers, ttl_s)
    lookup: AccountLookup = accounts
    return CachedAccounts(lookup, ttl_s=ttl_s) if getattr(lookup, "cacheable", True) else lookup
