"""What an upstream says when it is looked at: for `doctor`, and for `serve` before it starts."""

import time
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Any

import msgspec

from inf_middleware.upstream import Upstream

# A server that says nothing for this long is loading its model, or is none.
ANSWER_TIMEOUT_S = 5.0

# `Date` counts whole seconds.
_DATE_STEP_S = 1.0

_MODELS_SHOWN_MAX = 5


async def look_at(upstream: Upstream, clock_apart_max_s: float) -> tuple[bool, str]:
    """Ask an upstream for its models; return whether all is well, and what was found in words."""
    if find_spec("httpx") is None:
        return False, "the proxy needs httpx; install it: pip install 'inf-middleware[serve]'"
    import httpx  # noqa: PLC0415 - of an extra

    headers = {} if upstream.key is None else {"authorization": f"Bearer {upstream.key}"}
    try:
        async with httpx.AsyncClient(
            verify=upstream.verification(), timeout=ANSWER_TIMEOUT_S, trust_env=False
        ) as client:
            began_s = time.time()
            answer = await client.get(f"{upstream.url.rstrip('/')}/v1/models", headers=headers)
            took_s = time.time() - began_s
    except httpx.TimeoutException:
        return False, f"{upstream.url} did not answer within {ANSWER_TIMEOUT_S:g} s"
    except httpx.HTTPError as error:
        return False, f"{upstream.url} cannot be reached: {error or type(error).__name__}"
    words = f"{upstream.url} answers in {took_s * 1000:.0f} ms"
    if answer.status_code in (401, 403):
        if upstream.key is not None:
            return False, f"{words}, and refuses the key of key_file ({answer.status_code})"
        words += ", and wants a key: callers' own go through, or give key_file"
    elif answer.status_code >= 500:
        return False, f"{words}, with status {answer.status_code}"
    else:
        words += _models(answer.status_code, answer.content)
    ahead_s = _ahead(answer.headers.get("date"), began_s)
    if ahead_s is not None and abs(ahead_s) > clock_apart_max_s + took_s + _DATE_STEP_S:
        side = "ahead" if ahead_s > 0 else "behind"
        more = f"its clock is {abs(ahead_s):.0f} s {side}: set the clocks of both hosts by NTP"
        return False, f"{words}; {more}"
    return True, words


def _models(status: int, body: bytes) -> str:
    try:
        answer: Any = msgspec.json.decode(body)
        names = [str(model["id"]) for model in answer["data"]]
    except (msgspec.DecodeError, LookupError, TypeError):
        return f"; /v1/models is {status}, so it does not tell its models"
    shown = ", ".join(names[:_MODELS_SHOWN_MAX])
    more = f" and {len(names) - _MODELS_SHOWN_MAX} more" if len(names) > _MODELS_SHOWN_MAX else ""
    return f", and has {shown or 'no models'}{more}"


def _ahead(date: str | None, now_s: float) -> float | None:
    if date is None:
        return None
    try:
        return parsedate_to_datetime(date).timestamp() - now_s
    except ValueError:
        return None
