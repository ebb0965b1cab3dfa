"""A client's `Idempotency-Key`: one answer per key is delivered and billed."""

import hashlib
from collections.abc import Iterable

from inf_middleware.call.closing import to_the_end
from inf_middleware.call.record import Billing, Call, log
from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.books import Claim
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ports import Claims
from inf_middleware.wire import answers

KEY_HEADER = b"idempotency-key"

# What payment providers take; a UUID has 36.
KEY_CHARACTERS_MAX = 255


def note_fingerprint(call: Call) -> None:
    """Note the fingerprint of a request that has a key."""
    # Frameworks send who asks with a slash too many to the path without it: the same request.
    path = call.endpoint.rstrip("/")
    digest = hashlib.sha256(path.encode("utf-8", "replace"))
    digest.update(b"\0" + (call.body or b""))
    call.fingerprint = digest.hexdigest()


async def take_claim(call: Call, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Claim the request's key, where it has one.

    Raises:
        Refuse: It stands for a request in flight or delivered (409), or for another body (422); it
            is no key (400), or the ledger could not decide (503).
    """
    billing = call.billing
    claims = billing.claims if billing else None
    if (
        billing is None
        or claims is None
        or call.fingerprint is None
        or call.idempotency_key is not None
    ):
        return
    key = _key_of(headers)
    assert call.account is not None
    call.idempotency_key = key  # before it is claimed: whatever happens now, it has to be released
    claim = Claim(call.account.id, key, call.fingerprint, call.id)
    try:
        claimed = await claims.claim(claim)
    except LedgerUnavailable as error:
        call.idempotency_key = None
        billing.lost.remember(call.id)  # it may have been claimed all the same
        raise Refuse(
            503,
            "ledger_unavailable",
            "The Idempotency-Key cannot be checked just now; try again shortly.",
            headers=answers.retry_headers(1.0),
        ) from error
    if claimed.state == "claimed":
        call.retry_of = claimed.request_id
        return
    call.idempotency_key = None
    if claimed.state == "reused":
        raise Refuse(
            422,
            "idempotency_key_reused",
            "This Idempotency-Key was sent with another request; use a new key for a new request.",
        )
    if claimed.state == "complete":
        raise Refuse(
            409,
            "request_already_completed",
            f"The request of this Idempotency-Key has been answered, as {claimed.request_id}; it"
            " is not run again.",
        )
    raise Refuse(
        409,
        "request_in_progress",
        f"The request of this Idempotency-Key is still running, as {claimed.request_id}.",
        headers=answers.retry_headers(1.0),
        should_retry=True,
    )


async def abandon(call: Call) -> None:
    """End what a call that is not served after all holds and claims."""
    billing = call.billing
    if billing is None or billing.claims is None or call.recorded:
        return
    if call.hold is None and call.idempotency_key is None:
        return
    await to_the_end(_void(call, billing, billing.claims))


async def _void(call: Call, billing: Billing, claims: Claims) -> None:
    try:
        await claims.void(call.id)
    except LedgerUnavailable:
        log.exception("call %s: what it holds could not be ended", call.id)
        billing.lost.remember(call.id)


def _key_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    keys = {value for name, value in headers if name == KEY_HEADER}
    key = keys.pop().decode("latin-1").strip()
    if keys or not key.isascii() or not key.isprintable() or not 0 < len(key) <= KEY_CHARACTERS_MAX:
        raise Refuse(
            400,
            "invalid_request_body",
            "The Idempotency-Key must be one text of printable ASCII characters, at most"
            f" {KEY_CHARACTERS_MAX} of them.",
        )
    return key
