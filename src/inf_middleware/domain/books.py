"""What a ledger tells about accounts, keys and movements of money."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

# What an operator does to a balance. A correction (`credit` of a bill, `reverse` of a recharge,
# `expire` of a grant) takes back `amount_nano` of the record that it `corrects`.
Operation: TypeAlias = Literal["recharge", "grant", "credit", "withdraw", "reverse", "expire"]

KINDS: Mapping[Operation, str] = {
    "recharge": "recharge",
    "grant": "grant",
    "credit": "correction",
    "withdraw": "withdrawal",
    "reverse": "correction",
    "expire": "correction",
}

# The house's side of each operation's posting, and whether the account is credited by it.
HOUSE: Mapping[Operation, tuple[str, bool]] = {
    "recharge": ("cash:recharge", True),
    "grant": ("expense:grant", True),
    "credit": ("revenue:usage", True),
    "withdraw": ("cash:withdrawal", False),
    "reverse": ("cash:recharge", False),
    "expire": ("expense:grant", False),
}


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as the ledger keeps it; amounts in nano units of `currency`.

    `tier` is the level in force, `pinned_tier` the one an operator has pinned (None: it follows
    from `recharged_nano`). `balance_nano` is below 0 where the account owes; `held_nano` is held by
    running requests and still part of the balance.
    """

    account: str
    tier: str
    pinned_tier: str | None
    suspended: bool
    currency: str
    balance_nano: int
    held_nano: int
    recharged_nano: int
    credit_limit_nano: int
    metadata: Mapping[str, Any]
    created_at: str | None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key of an account; `key` itself is known only once, when it is issued."""

    key_id: str
    account: str
    label: str | None
    created_at: str
    revoked_at: str | None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """A movement of money, and how the account stands after it.

    `repeated`: it had been made before under the same reference, and nothing was changed now.
    """

    request_id: str
    kind: str
    operation: Operation
    corrects: str | None
    reference: str | None
    amount_nano: int
    settled_at: str
    repeated: bool
    account: AccountRecord


@dataclass(frozen=True, slots=True)
class Claim:
    """A client's key for one of its requests; `fingerprint` is of the path and the body."""

    account: str
    idempotency_key: str
    fingerprint: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim.

    "claimed": it may run; `request_id` is an earlier run that was not delivered whole, if any. Else
    the key stands for `request_id`, which is "running", "complete", or "reused": of another body.
    """

    state: Literal["claimed", "running", "complete", "reused"]
    request_id: str | None
