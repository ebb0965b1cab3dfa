"""The event: CloudEvents 1.0 with the fields of the design, the same bytes each time."""

import json
from typing import Any

import msgspec
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from inf_middleware import BillingEvent, Price, Usage
from inf_middleware.domain.events import priced
from inf_middleware.domain.usage import TOKENS_MAX
from tests.events import event_of

# Design, section 5, "Events".
FIELDS = [
    "request_id",
    "kind",
    "corrects",
    "account",
    "key_id",
    "tier",
    "endpoint",
    "model",
    "response_model",
    "response_id",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "basis",
    "lines",
    "amount_nano",
    "amount",
    "currency",
    "price_version",
    "overdrawn_nano",
    "outcome",
    "would_refuse",
    "unpriced",
    "idempotency_key",
    "started_at",
    "settled_at",
    "metadata",
]


@given(texts=st.lists(st.text(), min_size=5, max_size=5))
def test_the_envelope_says_what_the_event_says_whatever_its_texts_are(texts: list[str]) -> None:
    source, account, kind, request_id, settled_at = texts
    event = replace(
        event_of(),
        source=source,
        account=account,
        kind=kind,
        request_id=request_id,
        settled_at=settled_at,
        metadata={"source": source},
    )
    expected = asdict(event)
    del expected["source"]
    told = json.loads(event.encode())
    assert told.pop("data") == json.loads(msgspec.json.encode(expected))
    assert told == {
        "specversion": "1.0",
        "id": request_id,
        "source": source,
        "type": f"inf-middleware.{kind}.v1",
        "subject": account,
        "time": settled_at,
        "datacontenttype": "application/json",
    }


def test_the_data_has_the_fields_of_the_design_and_no_others() -> None:
    event = event_of()
    data = event.to_cloudevent()["data"]
    assert list(data) == FIELDS
    for name in FIELDS:
        if name != "lines":
            assert getattr(event, name) == data[name]


def test_counts_are_integers_and_money_is_strings_of_digits() -> None:
    data = json.loads(event_of(usage=Usage(1_000_000, 5)).encode())["data"]
    assert (data["input_tokens"], data["output_tokens"]) == (1_000_000, 5)
    assert data["amount_nano"] == "10000100000"
    assert data["amount"] == "10.0001"
    assert data["lines"] == [
        {
            "meter": "input_tokens",
            "quantity": 1_000_000,
            "unit_price_nano": "10000",
            "amount_nano": "10000000000",
        },
        {
            "meter": "output_tokens",
            "quantity": 5,
            "unit_price_nano": "20000",
            "amount_nano": "100000",
        },
    ]


@given(st.integers(0, TOKENS_MAX), st.integers(0, TOKENS_MAX), st.integers(0, TOKENS_MAX))
def test_what_is_priced_for_an_event_is_what_the_price_says(
    inputs: int, outputs: int, cached: int
) -> None:
    price = Price("m", "10", "4000000", cached_input="0.001")
    usage = Usage(inputs, outputs, cached_input_tokens=cached)
    shown, whole = priced(price, usage)
    lines = price.lines(usage)
    assert [line.meter for line in shown] == [line.meter for line in lines]
    assert [line.quantity for line in shown] == [line.quantity for line in lines]
    assert [int(line.unit_price_nano) for line in shown] == [line.unit_price_nano for line in lines]
    assert [int(line.amount_nano) for line in shown] == [line.amount_nano for line in lines]
    assert whole == sum(line.amount_nano for line in lines)


def test_the_cloudevents_package_reads_it() -> None:
    event = event_of()
    headers = {"content-type": "application/cloudevents+json"}
    message = HTTPMessage(headers=headers, body=event.encode())
    read = from_http_event(message, JSONFormat())
    assert read.get_id() == event.id == event.request_id
    assert read.get_source() == "urn:inf-middleware:default"
    assert read.get_subject() == "acme"
    assert read.get_type() == "inf-middleware.usage.v1"
    assert read.get_time() is not None
    assert read.get_data()["account"] == "acme"  # type: ignore[index,call-overload]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)


@given(
    account=TEXT,
    model=st.none() | TEXT,
    metadata=st.dictionaries(TEXT, JSON, max_size=4),
    usage=st.builds(Usage, st.integers(0, 10**9), st.integers(0, 10**9)),
)
def test_an_event_read_back_has_the_very_same_bytes(**fields: Any) -> None:
    event = event_of(**fields)
    again = BillingEvent.decode(event.encode())
    assert again == event
    assert again.encode() == event.encode()


def test_an_event_of_another_version_keeps_its_bytes() -> None:
    told = event_of().to_cloudevent()
    told["dataschema"] = "urn:later"
    told["data"]["added_later"] = {"x": 1}
    body = json.dumps(told, indent=1).encode()
    again = BillingEvent.decode(body)
    assert again.encode() == body
    assert again.to_cloudevent() == json.loads(body)
