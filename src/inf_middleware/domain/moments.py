"""Moments in UTC, as records and events write them, lengths of time, and the zone of reports."""

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from inf_middleware.domain.errors import ConfigError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(now_ns: int) -> str:
    """Write nanoseconds since the Unix epoch as RFC 3339, to the microsecond: it sorts as text."""
    seconds, ns = divmod(now_ns, 10**9)
    return f"{_second(seconds)}.{str(ns // 1000).zfill(6)}Z"


@lru_cache(maxsize=256)  # calls of a second are many, and begin and end in few of them
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def written(moment: datetime) -> str:
    """Write an aware moment as records do.

    Raises:
        ValueError: In UTC it is before the year 1, or after 9999.
    """
    try:
        return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except OverflowError as error:
        raise ValueError(f"{moment} is out of range") from error


def day_of(moment: str, zone: tzinfo) -> str:
    """Return the day of a moment that a record has, in a time zone: "2026-11-24"."""
    return datetime.fromisoformat(moment).astimezone(zone).date().isoformat()


def seconds_written(seconds: float) -> str:
    """Write a length of time in digits, to the millisecond: "2592000", "0.25"."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def zone_of(name: str) -> tzinfo:
    """Return the time zone of a name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"timezone is {name!r}; write a name such as UTC or Asia/Shanghai"
        ) from None
