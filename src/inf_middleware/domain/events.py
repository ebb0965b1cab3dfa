"""The billing event: one per admitted request, a CloudEvent with flat data."""

from typing import Any

import msgspec
from msgspec.structs import replace

from inf_middleware.domain.money import decimal_string
from inf_middleware.domain.prices import Price
from inf_middleware.domain.usage import Usage

_encode = msgspec.json.Encoder().encode


class EventLine(msgspec.Struct, frozen=True, gc=False):
    """One disjoint part of the cost; money as strings of digits, in nano units."""

    meter: str
    quantity: int
    unit_price_nano: str
    amount_nano: str


# How the last field of an event begins, which is no part of the data, and how both end.
_SOURCE, _END = b',"source":', b"}}"

# Where an event that was read back keeps its encoded form (in its dict, beside the fields).
_STORED = "_stored"


class BillingEvent(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What happened, for whom, and what it cost: the fields of the event's data.

    Counts are integers, `*_nano` strings of digits (1e-9 of the currency), `amount` the same as a
    decimal string, moments RFC 3339 in UTC; `settled_at` decides day and month. `basis` is
    "reported", "counted" or "estimated"; `outcome` one of complete, client_disconnect,
    upstream_error, balance_exhausted, shutdown, worker_lost. `source` names the deployment and is
    not part of the data.
    """

    request_id: str
    kind: str = "usage"
    corrects: str | None = None
    account: str
    key_id: str | None
    tier: str
    endpoint: str
    model: str | None
    response_model: str | None
    response_id: str | None
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    basis: str
    lines: tuple[EventLine, ...]
    amount_nano: str
    amount: str
    currency: str
    price_version: str | None
    overdrawn_nano: str = "0"
    outcome: str
    would_refuse: str | None = None
    unpriced: bool
    idempotency_key: str | None = None
    started_at: str
    settled_at: str
    metadata: dict[str, Any]
    source: str

    @property
    def id(self) -> str:
        """The event's id: our request id."""
        return self.request_id

    @property
    def was_read_back(self) -> bool:
        """Whether it was decoded, and not made here."""
        return hasattr(self, _STORED)

    def to_cloudevent(self) -> dict[str, Any]:
        """Return the event as CloudEvents 1.0 JSON (structured mode) would hold it.

        Source: CloudEvents 1.0.2, section "Context Attributes"; JSON format, section 3.
        """
        event: dict[str, Any] = msgspec.json.decode(self.encode())
        return event

    def encode(self) -> bytes:
        """Return the event as it is stored and delivered: structured CloudEvents JSON.

        One that was read back has the very bytes it was read from, whichever version wrote them.
        """
        stored: bytes | None = getattr(self, _STORED, None)
        if stored is not None:
            return stored
        whole = _encode(
            _CloudEvent(
                "1.0",
                self.request_id,
                self.source,
                f"inf-middleware.{self.kind}.v1",
                self.account,
                self.settled_at,
                "application/json",
                self,
            )
        )
        return whole[: whole.rindex(_SOURCE)] + _END  # within a text it has its marks escaped

    @classmethod
    def decode(cls, body: bytes) -> "BillingEvent":
        """Read an event back from its encoded form."""
        envelope = msgspec.json.decode(body, type=_Envelope)
        event = msgspec.convert({**envelope.data, "source": envelope.source}, cls)
        event.__dict__[_STORED] = body
        return event


class _CloudEvent(msgspec.Struct):
    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str
    data: BillingEvent


class _Envelope(msgspec.Struct):
    source: str
    data: dict[str, Any]


def storable(text: str | None) -> str | None:
    """Return a text from outside as it can be stored: lone surrogates are no characters."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def priced(price: Price, usage: Usage) -> tuple[tuple[EventLine, ...], int]:
    """Price a usage: its lines as the event shows them, and their sum in nano units."""
    shown, whole = [], 0
    for line in price.lines(usage):
        amount_nano = line.amount_nano
        whole += amount_nano
        shown.append(
            EventLine(line.meter, line.quantity, str(line.unit_price_nano), str(amount_nano))
        )
    return tuple(shown), whole


# An event that says nothing yet: one is made by replacing what it has to say, by at most 14 fields
# at once. Python makes a dict of more arguments first, which took longer than all the rest.
BLANK = BillingEvent(
    request_id="",
    account="",
    key_id=None,
    tier="",
    endpoint="",
    model=None,
    response_model=None,
    response_id=None,
    input_tokens=0,
    output_tokens=0,
    cached_input_tokens=0,
    cache_write_tokens=0,
    reasoning_tokens=0,
    basis="reported",
    lines=(),
    amount_nano="0",
    amount="0",
    currency="",
    price_version=None,
    outcome="complete",
    unpriced=False,
    started_at="",
    settled_at="",
    metadata={},
    source="",
)


def movement_event(
    request_id: str,
    *,
    kind: str,
    corrects: str | None,
    account: str,
    tier: str,
    amount_nano: int,
    currency: str,
    now: str,
    metadata: dict[str, Any],
    source: str,
) -> BillingEvent:
    """Return the event of a movement of money that is no call: nothing was read or written."""
    return replace(
        BLANK,
        request_id=request_id,
        kind=kind,
        corrects=corrects,
        account=account,
        tier=tier,
        amount_nano=str(amount_nano),
        amount=decimal_string(amount_nano),
        currency=currency,
        started_at=now,
        settled_at=now,
        metadata=metadata,
        source=source,
    )
