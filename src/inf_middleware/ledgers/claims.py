"""Idempotency keys of clients, as steps for either database: one answer per key is billed."""

from collections.abc import Sequence

from inf_middleware.domain.books import Claim, Claimed
from inf_middleware.domain.moments import rfc3339
from inf_middleware.ledgers.rows import Rows
from inf_middleware.ledgers.steps import Ask, Steps

# How long a key stands for its request: as long as those of payment providers.
KEPT_S = 24 * 3600

# Keys forgotten in one transaction; the others with the next beat.
_FORGOTTEN_MAX = 1_000


def claim(claimed: Claim, owner: str, now_ns: int) -> Steps[Claimed]:
    """Claim a key for a request, or say whose it is; one statement decides."""
    now, expired = rfc3339(now_ns), rfc3339(now_ns - KEPT_S * 10**9)
    place = (claimed.account, claimed.idempotency_key)
    earlier = yield Ask(
        "SELECT request_id, claimed_at FROM idempotency WHERE account = ? AND idempotency_key = ?",
        place,
    )
    won = yield Ask(
        "INSERT INTO idempotency (account, idempotency_key, fingerprint, request_id, state, owner,"
        " claimed_at) VALUES (?, ?, ?, ?, 'running', ?, ?)"
        " ON CONFLICT (account, idempotency_key) DO UPDATE SET fingerprint = excluded.fingerprint,"
        " request_id = excluded.request_id, state = 'running', owner = excluded.owner,"
        " claimed_at = excluded.claimed_at"
        " WHERE idempotency.claimed_at < ? OR (idempotency.state = 'partial'"
        "  AND idempotency.fingerprint = excluded.fingerprint)"
        " RETURNING 1",
        (*place, claimed.fingerprint, claimed.request_id, owner, now, expired),
    )
    if won:
        if not earlier:
            return Claimed("claimed", None)
        ((retry_of, claimed_at),) = earlier
        yield from _forget_retries([(retry_of,)])
        if claimed_at < expired:
            return Claimed("claimed", None)
        yield from _note_retry(claimed.request_id, retry_of, claimed_at)
        return Claimed("claimed", retry_of)
    rows = yield Ask(
        "SELECT request_id, state, fingerprint FROM idempotency"
        " WHERE account = ? AND idempotency_key = ?",
        place,
    )
    request_id, state, fingerprint = rows[0]
    if fingerprint != claimed.fingerprint:
        return Claimed("reused", request_id)
    return Claimed("complete" if state == "complete" else "running", request_id)


def release(request_id: str) -> Steps[None]:
    """Give up the claim of a request that is not served; that of an earlier run stands again."""
    earlier = yield Ask(
        "SELECT request_id, fingerprint FROM reference WHERE kind = 'retry' AND reference = ?",
        (request_id,),
    )
    if not earlier:
        yield Ask(
            "DELETE FROM idempotency WHERE request_id = ? AND state = 'running'", (request_id,)
        )
        return
    yield Ask(
        "UPDATE idempotency SET state = 'partial', request_id = ?, claimed_at = ?"
        " WHERE request_id = ? AND state = 'running'",
        (*earlier[0], request_id),
    )
    yield from _forget_retries([(request_id,)])


def finish(rows: Sequence[Rows]) -> Steps[None]:
    """Note of settled requests whether their answers were delivered whole."""
    finished = [(row.state, row.request_id) for row in rows if row.state is not None]
    if finished:
        yield Ask("UPDATE idempotency SET state = ? WHERE request_id = ?", finished, many=True)


def give_up(owner: str) -> Steps[None]:
    """Let what a dead process had claimed run again."""
    yield Ask(
        "UPDATE idempotency SET state = 'partial' WHERE owner = ? AND state = 'running'", (owner,)
    )


def forget(now_ns: int) -> Steps[None]:
    """Forget keys that have stood for long enough."""
    old = yield Ask(
        f"SELECT request_id FROM idempotency WHERE claimed_at < ? LIMIT {_FORGOTTEN_MAX}",
        (rfc3339(now_ns - KEPT_S * 10**9),),
    )
    if old:
        forgotten = [tuple(row) for row in old]
        yield Ask("DELETE FROM idempotency WHERE request_id = ?", forgotten, many=True)
        yield from _forget_retries(forgotten)


def _note_retry(request_id: str, retry_of: str, claimed_at: str) -> Steps[None]:
    """Keep what a key stood for, should its retry be given up.

    Among the references, as probes are, under a kind that no movement has.
    """
    yield Ask(
        "INSERT INTO reference (kind, reference, request_id, fingerprint)"
        " VALUES ('retry', ?, ?, ?)",
        (request_id, retry_of, claimed_at),
    )


def _forget_retries(request_ids: Sequence[tuple[str]]) -> Steps[None]:
    yield Ask(
        "DELETE FROM reference WHERE kind = 'retry' AND reference = ?", request_ids, many=True
    )
