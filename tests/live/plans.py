"""Who floods what: for each level one account for each limit, and that limit alone binds it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from inf_middleware import Tiers
from tests.live.subject import INPUT_TOKENS, MESSAGES

Limit = Literal["requests", "tokens", "concurrency"]
LIMITS: tuple[Limit, ...] = ("requests", "tokens", "concurrency")

_FAR = 10**9  # a limit that no flood comes near

# Tokens of a level are asked for in this many equal requests a window: they fill it to the last
# token (it divides the tokens per minute of all levels), and a small machine can serve them.
_REQUESTS_PER_WINDOW = 40

# How long a request for a slot works: long against the way to the server and back, some 10 ms.
_HOLD_S = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One account: at most `limit` of what is `bound`, each request with `tokens`."""

    level: str
    bound: Limit
    limit: int
    window_s: int
    tokens: int

    @property
    def key(self) -> str:
        return f"sk-{self.level}-{self.bound}"

    @property
    def capacity(self) -> int:
        """How many requests the limit admits at once, or within a window."""
        return self.limit // self.tokens if self.bound == "tokens" else self.limit

    @property
    def hold_s(self) -> float:
        return _HOLD_S if self.bound == "concurrency" else 0.0

    @property
    def lanes(self) -> int:
        """How many requests are kept going: more than there is room for, or a burst of some."""
        return self.limit + 2 if self.bound == "concurrency" else min(self.capacity + 1, 8)

    def asking(self, *, stream: bool, hold_s: float) -> dict[str, Any]:
        """One request."""
        return {
            "model": "inf-chat-v1",
            "messages": MESSAGES,
            "max_tokens": self.tokens - INPUT_TOKENS,
            "stream": stream,
            "metadata": {"hold_s": f"{hold_s:.3f}"},
        }

    def row(self, number: int) -> str:
        """Its level as TOML; of a minute the limits are those of the level itself."""
        bounds = {"requests": _FAR, "tokens": _FAR, "concurrency": _FAR}
        further = ""
        if self.bound == "concurrency" or self.window_s == 60:
            bounds[self.bound] = self.limit
        else:
            further = f'{self.bound} = ["{self.limit}/{self.window_s} second"]\n'
        return (
            f'[[tier]]\nname = "{self.key}"\nconcurrency = {bounds["concurrency"]}\n'
            f"requests_per_minute = {bounds['requests']}\n"
            f"tokens_per_minute = {bounds['tokens']}\n"
            f'recharged_from = "{number}"\n{further}\n'
        )


def plans(window_s: int, limits: Iterable[Limit] = LIMITS) -> list[Plan]:
    """One plan for each level that ships and each limit, the rates brought down to the window."""
    made = []
    for tier in Tiers.default().tiers:
        requests = max(round(tier.requests_per_minute * window_s / 60), 1)
        per_request = round(tier.tokens_per_minute * window_s / 60 / _REQUESTS_PER_WINDOW)
        tokens = per_request * _REQUESTS_PER_WINDOW
        bounds = {"requests": requests, "tokens": tokens, "concurrency": tier.concurrency}
        made += [
            Plan(
                level=tier.name,
                bound=bound,
                limit=bounds[bound],
                window_s=window_s,
                tokens=per_request if bound == "tokens" else INPUT_TOKENS + 1,
            )
            for bound in limits
        ]
    return made


def tiers_toml(made: Iterable[Plan]) -> str:
    """The levels of all plans as one file."""
    return "\n".join(plan.row(number) for number, plan in enumerate(made))
