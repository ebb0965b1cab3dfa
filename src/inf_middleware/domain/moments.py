"""Moments in UTC, as records and events write them."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(now_ns: int) -> str:
    """Write nanoseconds since the Unix epoch as RFC 3339, to the microsecond: it sorts as text."""
    moment = _EPOCH + timedelta(microseconds=now_ns // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
