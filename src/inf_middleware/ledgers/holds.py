"""Money held for running calls, as steps for either database.

A hold is one guarded statement: nothing is read and then written. It ends with the settlement of
its call, by being voided, or, when its process is gone, as the bill of its last checkpoint.
"""

from msgspec.structs import replace

from inf_middleware.domain.books import Claim, Claimed
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.claims import claim, forget, give_up, release
from inf_middleware.ledgers.continuing import keep_credits
from inf_middleware.ledgers.lots import expire
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.settling import settle_all
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ledgers.taking_back import take_back

# A process that has not been heard of for so long is gone; it beats three times in that time.
LEASE_S = 30.0
BEAT_S = LEASE_S / 3

# Between beats of a ledger, whoever's, that are further apart there is a gap. After the longest
# time that is none a process that lives was silent for that and a beat: 25 s, less than a lease.
GAP_BEATS = 1.5

# Who was heard of a shorter time ago need not say again that it lives: the timer does. That is a
# page less in each commit of a hold.
_FRESH_MS = round(BEAT_S * 1000)

# Before any beat, by any clock.
_NEVER_MS = -(2**62)

# Holds of dead processes that end in one transaction; the others with the next beat.
_REAPED_MAX = 200


def hold(
    event: BillingEvent,
    amount_nano: int,
    credit_limit_nano: int,
    owner: str,
    now_ms: int,
    spare_nano: int = 0,
) -> Steps[int | None]:
    """Hold an amount for a call; return None, or what is available where that is less.

    `event` is the bill as it stands: the first checkpoint.
    """
    yield _beat(owner, now_ms, _FRESH_MS)
    floor_nano = credit_limit_nano - spare_nano
    available = yield from _take(event.account, event.currency, amount_nano, floor_nano)
    if available is not None:
        return available
    yield Ask(
        "INSERT INTO hold (request_id, account, currency, amount_nano, credit_limit_nano, owner,"
        " checkpoint) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            event.id,
            event.account,
            event.currency,
            amount_nano,
            credit_limit_nano,
            owner,
            event.encode(),
        ),
    )
    return None


def extend(event: BillingEvent, amount_nano: int) -> Steps[int | None]:
    """Hold more for a call, and move its checkpoint to `event`.

    Return None, or what is available where that is less: the checkpoint moves all the same. A hold
    that has ended meanwhile has nothing available.
    """
    held = yield Ask("SELECT credit_limit_nano FROM hold WHERE request_id = ?", (event.id,))
    if not held:
        return 0
    available = yield from _take(event.account, event.currency, amount_nano, held[0][0])
    yield Ask(
        "UPDATE hold SET amount_nano = amount_nano + ?, checkpoint = ? WHERE request_id = ?",
        (0 if available is not None else amount_nano, event.encode(), event.id),
    )
    return available


def claim_for(claimed: Claim, owner: str, now_ms: int, now_ns: int) -> Steps[Claimed]:
    """Claim a client's key, as a process that lives."""
    yield _beat(owner, now_ms, _FRESH_MS)
    return (yield from claim(claimed, owner, now_ns))


def void(request_id: str, now_ns: int) -> Steps[None]:
    """End a hold and a claim without a bill; one that was recorded all the same is taken back."""
    yield from release(request_id)
    rows = yield Ask(
        "DELETE FROM hold WHERE request_id = ? RETURNING account, currency, amount_nano",
        (request_id,),
    )
    for account, currency, amount in rows:
        yield Ask(
            "UPDATE balance SET held_nano = held_nano - ? WHERE account = ? AND currency = ?",
            (amount, account, currency),
        )
    yield from take_back(request_id, now_ns)


def beat(
    owner: str | None, boot: str, now_ms: int, now_ns: int, now: str, *, judges: bool = True
) -> Steps[int]:
    """Say that a process lives, and end what dead ones held and grants whose time is over.

    An `owner` of None holds nothing and has nothing to say. Processes whose id does not begin with
    `boot`, the host's latest, are gone; those that are silent are, where it `judges` by that.
    Returns how many holds were ended.
    """
    if owner is not None:
        yield _beat(owner, now_ms)
    dead = yield Ask(
        "SELECT id FROM process WHERE beat_ms < ? OR id NOT LIKE ? ORDER BY id",
        (now_ms - round(LEASE_S * 1000) if judges else _NEVER_MS, f"{boot}%"),
    )
    ended = 0
    for (process,) in dead:
        rows = yield Ask(
            "SELECT checkpoint, request_id, credit_limit_nano FROM hold WHERE owner = ?"
            f" ORDER BY request_id LIMIT {_REAPED_MAX}",
            (process,),
        )
        bills = [replace(BillingEvent.decode(bytes(row[0])), settled_at=now) for row in rows]
        yield from keep_credits([(request_id, credit) for _, request_id, credit in rows if credit])
        yield from settle_all([rows_of(bill) for bill in bills])
        yield from give_up(process)
        ended += len(bills)
        if len(bills) < _REAPED_MAX:
            yield Ask("DELETE FROM process WHERE id = ?", (process,))
    yield from expire(now_ns, now)
    yield from forget(now_ns)
    return ended


def _beat(owner: str, now_ms: int, fresh_ms: int = 0) -> Ask:
    """Say that a process lives, unless it has said so less than `fresh_ms` ago."""
    return Ask(
        "INSERT INTO process (id, beat_ms) VALUES (?, ?)"
        " ON CONFLICT (id) DO UPDATE SET beat_ms = excluded.beat_ms"
        " WHERE process.beat_ms <= ? OR process.beat_ms > ?",  # a server's clock may go back
        (owner, now_ms, now_ms - fresh_ms, now_ms),
    )


def _take(
    account: str, currency: str, amount_nano: int, credit_limit_nano: int
) -> Steps[int | None]:
    take = Ask(
        "UPDATE balance SET held_nano = held_nano + ? WHERE account = ? AND currency = ?"
        " AND balance_nano - held_nano >= ? RETURNING 1",
        (amount_nano, account, currency, amount_nano - credit_limit_nano),
    )
    if (yield take):
        return None
    rows = yield Ask(
        "SELECT balance_nano - held_nano FROM balance WHERE account = ? AND currency = ?",
        (account, currency),
    )
    if rows:
        return max(int(rows[0][0]) + credit_limit_nano, 0)
    yield Ask(
        "INSERT INTO balance (account, currency) VALUES (?, ?)"
        " ON CONFLICT (account, currency) DO NOTHING",
        (account, currency),
    )
    return (yield from _take(account, currency, amount_nano, credit_limit_nano))
