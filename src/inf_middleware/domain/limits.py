"""The two answers of a store to a request for admission."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

LimitCode: TypeAlias = Literal[
    "concurrency_limit_exceeded", "requests_limit_exceeded", "tokens_limit_exceeded"
]

# Nobody knows when a running request ends; a second is short enough to be tried and long enough
# not to hammer (design: "What the caller sees").
CONCURRENCY_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How one limit stands: `remaining` of `limit`, whole again after `reset_s` seconds."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Standings:
    """How the limits of an account stand after a decision.

    Of several rates on one metric, the one with the least remaining. Concurrency has no reset: its
    `reset_s` is 0.
    """

    requests: Standing
    tokens: Standing
    concurrency: Standing


@dataclass(frozen=True, slots=True)
class Admission:
    """The receipt of an admitted request: a slot and a reservation of `tokens`; settle it once."""

    call_id: str
    account_id: str
    tokens: int
    standings: Standings


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not admitted; nothing was taken.

    `limit`, `used` and `requested` are those of the limit named by `code`, over `window_s`
    seconds (0 for concurrency). `retry_after_s` is when this very request would fit over all
    limits, if nothing else of the account happens; for concurrency an estimate.
    """

    code: LimitCode
    limit: int
    used: int
    requested: int
    window_s: float
    retry_after_s: float
    standings: Standings
