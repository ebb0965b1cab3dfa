"""Moments in UTC, as records and events write them, and the time zone of reports."""

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from inf_middleware.domain.errors import ConfigError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(now_ns: int) -> str:
    """Write nanoseconds since the Unix epoch as RFC 3339, to the microsecond: it sorts as text."""
    moment = _EPOCH + timedelta(microseconds=now_ns // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def written(moment: datetime) -> str:
    """Write an aware moment as records do."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


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
