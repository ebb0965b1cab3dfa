"""What is compared on the same work: the bare app, what others put around it, and ours."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.model_app import KEY, PATH, answer, bare
from benchmarks.straight_line import StraightLine
from inf_middleware import Account, CostLedger, Gate, Tier, TierLimiter, TokenMeter

# Limits that never refuse: what is measured is the work, not the refusals.
WIDE = 10**9
LEVEL = Tier("Wide", 1_000, WIDE, WIDE)


@dataclass(frozen=True)
class Places:
    """Where a subject finds its servers; files go into `folder`."""

    folder: Path
    redis: str = ""
    postgres: str = ""


@dataclass(frozen=True)
class Subject:
    """One thing to measure, against `base`; `needs` names what must be there.

    `is_frozen`: its server spares the garbage collector, as `inf-middleware serve` does.
    `is_served`: over uvicorn, too.
    """

    name: str
    make: Callable[[Places], ASGIApp]
    base: str = "bare app"
    needs: tuple[str, ...] = ()
    is_frozen: bool = False
    is_served: bool = True


class _PureAsgi:
    """Does nothing, by wrapping `send` as every middleware does that looks at answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Any) -> None:
            await send(message)

        await self.app(scope, receive, sending)


def _no_op_base(_: Places) -> ASGIApp:
    from starlette.middleware.base import BaseHTTPMiddleware  # noqa: PLC0415 - of one subject

    class NoOp(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            return await call_next(request)

    return NoOp(bare())


def _slowapi(variant: str) -> Callable[[Places], ASGIApp]:
    def make(_: Places) -> ASGIApp:
        import slowapi  # noqa: PLC0415 - may be absent
        from slowapi import middleware  # noqa: PLC0415

        app = bare()
        app.state.limiter = slowapi.Limiter(
            key_func=lambda request: request.headers["authorization"],
            default_limits=[f"{WIDE}/minute"],
        )
        app.add_middleware(getattr(middleware, variant))
        return app

    return make


def _fastapi(_: Places) -> ASGIApp:
    from fastapi import FastAPI  # noqa: PLC0415 - of two subjects

    app = FastAPI()
    app.post(PATH)(answer)
    return app


def _fastapi_limiter(_: Places) -> ASGIApp:
    from fastapi import Depends, FastAPI  # noqa: PLC0415
    from fastapi_limiter.depends import RateLimiter  # noqa: PLC0415 - may be absent
    from pyrate_limiter import Duration, Limiter, Rate  # noqa: PLC0415

    async def identifier(request: Any) -> str:
        return str(request.headers["authorization"])

    limiter = RateLimiter(Limiter(Rate(100_000, Duration.MINUTE)), identifier)
    app = FastAPI()
    app.post(PATH, dependencies=[Depends(limiter)])(answer)
    return app


def _asgi_ratelimit(places: Places) -> ASGIApp:
    from ratelimit import RateLimitMiddleware, Rule  # noqa: PLC0415 - may be absent
    from ratelimit.backends.redis import RedisBackend  # noqa: PLC0415
    from redis.asyncio import StrictRedis  # noqa: PLC0415

    async def authenticate(scope: Scope) -> tuple[str, str]:
        return dict(scope["headers"])[b"authorization"].decode(), "default"

    return RateLimitMiddleware(
        bare(), authenticate, RedisBackend(StrictRedis.from_url(places.redis)),
        {r"^/v1": [Rule(minute=WIDE)]},
    )  # fmt: skip


class _LimitsByHand:
    """What teams write: two hits of `limits`, requests and tokens, one after the other."""

    def __init__(self, app: ASGIApp, uri: str) -> None:
        import limits  # noqa: PLC0415 - of two subjects
        from limits.aio.strategies import FixedWindowRateLimiter  # noqa: PLC0415
        from limits.storage import storage_from_string  # noqa: PLC0415

        options = {} if "memory" in uri else {"implementation": "redispy"}
        self._limiter = FixedWindowRateLimiter(storage_from_string(f"async+{uri}", **options))
        self._requests = limits.RateLimitItemPerMinute(WIDE, namespace="requests")
        self._tokens = limits.RateLimitItemPerMinute(WIDE, namespace="tokens")
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key = dict(scope["headers"])[b"authorization"].decode()
            await self._limiter.hit(self._requests, key)
            await self._limiter.hit(self._tokens, key, cost=1_000)
        await self._app(scope, receive, send)


def account(**more: Any) -> dict[str, Account]:
    """Return the one account, on a level that never refuses."""
    return {KEY: Account("acme", tier=LEVEL, **more)}


def _gate(storage: str, ledger: str, mode: str, suffix: str = "") -> Callable[[Places], ASGIApp]:
    def make(places: Places) -> ASGIApp:
        file = f"sqlite:///{places.folder}/{storage}-{mode}{suffix}.db"
        return Gate(
            bare(),
            accounts=account(credit_limit="1000000000"),
            storage="memory://" if storage == "memory" else places.redis,
            ledger=file if ledger == "sqlite" else places.postgres,
            mode=mode,  # type: ignore[arg-type]
            # One process serves all subjects in turn, and 64 requests at once: it would take its
            # own pauses for a Redis that is away, and measure what holds then.
            storage_timeout_s=5,
        )

    return make


BARE = "bare app"
METER = "TokenMeter"
LIMITER = "TierLimiter, memory"
LEDGER = "CostLedger, SQLite"
ALL = "all three, memory + SQLite"
ALL_FROZEN = "all three, memory + SQLite, frozen"
ALL_REDIS = "all three, Redis + SQLite"
PREPAID = "all three, Redis + SQLite prepaid"
ALL_POSTGRES = "all three, Redis + PostgreSQL"
HITS_MEMORY = "two hits of limits, memory"
HITS_REDIS = "two hits of limits, Redis"

SUBJECTS = (
    Subject(BARE, lambda _: bare()),
    Subject("no-op pure ASGI", lambda _: _PureAsgi(bare())),
    Subject("no-op BaseHTTPMiddleware", _no_op_base),
    Subject("slowapi, ASGI", _slowapi("SlowAPIASGIMiddleware"), needs=("slowapi",)),
    Subject("slowapi, Base", _slowapi("SlowAPIMiddleware"), needs=("slowapi",)),
    Subject("bare FastAPI", _fastapi),
    Subject("fastapi-limiter, memory", _fastapi_limiter, "bare FastAPI", ("fastapi_limiter",)),
    Subject("asgi-ratelimit, Redis", _asgi_ratelimit, needs=("ratelimit", "redis")),
    Subject(HITS_MEMORY, lambda _: _LimitsByHand(bare(), "memory://")),
    Subject(HITS_REDIS, lambda places: _LimitsByHand(bare(), places.redis), needs=("redis",)),
    Subject("straight-line code: counts", lambda _: StraightLine(bare()), is_served=False),
    Subject(
        "straight-line code: and limits",
        lambda _: StraightLine(bare(), limits=True),
        is_served=False,
    ),
    Subject(
        "straight-line code: and makes bills",
        lambda _: StraightLine(bare(), limits=True, bills=True),
        is_served=False,
    ),
    Subject(
        "straight-line code: and keeps them in SQLite",
        lambda places: StraightLine(
            bare(), limits=True, bills=True, keeps=places.folder / "straight.db"
        ),
    ),
    Subject(METER, lambda _: TokenMeter(bare())),
    Subject(LIMITER, lambda _: TierLimiter(bare(), accounts=account())),
    Subject(
        LEDGER,
        lambda places: CostLedger(
            bare(), accounts=account(), ledger=f"sqlite:///{places.folder}/alone.db"
        ),
    ),
    Subject(ALL, _gate("memory", "sqlite", "postpaid")),
    Subject("bare app, frozen", lambda _: bare(), is_frozen=True),
    Subject(
        ALL_FROZEN,
        _gate("memory", "sqlite", "postpaid", "-frozen"),
        "bare app, frozen",
        is_frozen=True,
    ),
    Subject(ALL_REDIS, _gate("redis", "sqlite", "postpaid"), needs=("redis",)),
    Subject(PREPAID, _gate("redis", "sqlite", "prepaid"), needs=("redis",)),
    Subject(ALL_POSTGRES, _gate("redis", "postgres", "postpaid"), needs=("redis", "postgres")),
)


def subjects_for(places: Places, names: tuple[str, ...] | None = None) -> list[Subject]:
    """Return the subjects whose needs are met, all or those named."""

    def has(need: str) -> bool:
        if need in ("redis", "postgres"):
            return bool(getattr(places, need))
        return find_spec(need) is not None

    return [
        subject
        for subject in SUBJECTS
        if all(map(has, subject.needs)) and (names is None or subject.name in names)
    ]
