"""What is told to those who watch: facts that are known anyway, none of a prompt and no key."""

from typing import NamedTuple

from inf_middleware.domain.usage import Usage


class RefusedCall(NamedTuple):
    """A call that was refused, by the `code` of its answer.

    `account`, `tier` and `model` are None where it came to its end before they were known.
    `listed_model` is as in `SettledCall`.
    """

    call_id: str
    endpoint: str
    dialect: str
    model: str | None
    listed_model: str | None
    account: str | None
    tier: str | None
    status: int
    code: str


class SettledCall(NamedTuple):
    """A call that was served, and what it came to.

    `model` is what the caller wrote; `listed_model` is what of it the operator has written down: a
    name in `serves`, else the name or pattern of its price; None where it stands nowhere.
    `amount_nano` and `currency` are None where nothing is billed; `recorded` is False where it
    should have been and could not be. `first_output_s` is None where the answer was no stream.
    `would_refuse` is the code of what is not enforced.
    """

    call_id: str
    endpoint: str
    dialect: str
    model: str | None
    listed_model: str | None
    account: str | None
    tier: str | None
    usage: Usage
    amount_nano: int | None
    currency: str | None
    outcome: str
    recorded: bool
    would_refuse: str | None
    duration_s: float
    first_output_s: float | None
