"""Since when a ledger could be written without a gap, as the beats of all its processes tell.

The ledger remembers it, so that a process which is started anew goes on with what those before it
have seen.
"""

from inf_middleware.ledgers.steps import Ask, Steps


def lasting_ms(boot: str, now_ms: int, gap_ms: int, missed_ms: int | None) -> Steps[int]:
    """Note a beat; return for how long there have been beats without a gap.

    Anybody's count: each was written. A gap is a time without any that is longer than `gap_ms`, a
    jump of the clock by as much, another `boot`, which is a clock of its own, or the time since
    this process failed to beat at `missed_ms` where no other has beaten since.
    """
    ((beats, some_process),) = yield Ask(
        "SELECT (SELECT fingerprint FROM reference WHERE kind = 'beats' AND reference = ?),"
        " EXISTS (SELECT 1 FROM process)",
        (boot,),
    )
    if not some_process:  # nobody holds anything: there is nothing to judge, and nothing to write
        return 0
    since_ms, last_ms = map(int, beats.split()) if beats else (now_ms, now_ms)
    failed = missed_ms is not None and last_ms <= missed_ms
    if abs(now_ms - last_ms) > gap_ms or failed:
        since_ms = now_ms
    if not beats:
        yield Ask("DELETE FROM reference WHERE kind = 'beats'")  # of an earlier boot
    # Among the references, as probes are, under a kind that no movement has.
    yield Ask(
        "INSERT INTO reference (kind, reference, request_id, fingerprint)"
        " VALUES ('beats', ?, '', ?) ON CONFLICT (kind, reference)"
        " DO UPDATE SET fingerprint = excluded.fingerprint",
        (boot, f"{since_ms} {now_ms}"),
    )
    return now_ms - since_ms
