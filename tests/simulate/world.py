"""The world of one seed: workers, their disk and server, callers, and all that befalls them."""

import asyncio
import copy
import itertools
import json
import logging
import struct
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inf_middleware import CostLedger, TierLimiter, TokenMeter
from inf_middleware.domain.errors import LedgerUnavailable, LimitsUnavailable
from inf_middleware.stores.scripts import Step, load_script
from tests.simulate.asked import REQUEST, Asked
from tests.simulate.audit import Auditor
from tests.simulate.limits_model import Bounds, Broken, LimitsModel
from tests.simulate.machine import Machine
from tests.simulate.power import Power
from tests.simulate.redispy import Server
from tests.simulate.worker_process import Sink, Worker

ACCOUNTS = ("ada", "bob", "cyd")

# Every answer of ours: design, "What the caller sees".
CODES = {
    (401, "invalid_api_key"),
    (403, "account_suspended"),
    (503, "accounts_unavailable"),
    (408, "request_timeout"),
    (400, "tokens_exceed_tier_limit"),
    (409, "request_in_progress"),
    (409, "request_already_completed"),
    (422, "idempotency_key_reused"),
    (429, "concurrency_limit_exceeded"),
    (429, "requests_limit_exceeded"),
    (429, "tokens_limit_exceeded"),
    (402, "insufficient_balance"),
    (503, "server_busy"),
    (503, "limits_unavailable"),
    (503, "ledger_unavailable"),
}


@dataclass(frozen=True)
class Options:
    """What the seed chose for all workers."""

    shared: bool
    workers: int
    mode: str
    on_ledger_error: str
    on_disconnect: str
    on_storage_error: str
    max_wait_s: float
    max_in_flight: int | None
    order: tuple[type, ...]

    @classmethod
    def of(cls, rng: Any) -> "Options":
        shared = rng.random() < 0.6
        mode = rng.choice(["postpaid", "prepaid"])
        return cls(
            shared=shared,
            workers=rng.choice([1, 2]),
            mode=mode,
            on_ledger_error=rng.choice(["spool", "refuse"]),
            on_disconnect=rng.choice(["produced", "produced", "drain"]),
            on_storage_error=rng.choice(["local", "refuse", "admit"]),
            max_wait_s=rng.choice([0.0, 5.0, 20.0]),
            max_in_flight=rng.choice([None, None, 4]),
            order=tuple(rng.sample([TokenMeter, TierLimiter, CostLedger], 3)),
        )


class _Errors(logging.Handler):
    """What the library could not explain, and only logged."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, LedgerUnavailable | LimitsUnavailable):
            text = record.getMessage()
            if "caller got a 503" not in text and not isinstance(error, Broken):
                Broken(f"logged: {text}: {error!r}")


class World:
    """Everything of one seed."""

    def __init__(
        self, machine: Machine, folder: Path, template: dict[str, bytes], keys: Any
    ) -> None:
        self.machine = machine
        self.rng = machine.rng
        self.folder = folder
        self.keys: dict[str, str] = keys
        self.options = Options.of(machine.rng)
        self.power = Power()
        self.power.lay_out(template, folder)
        self.scripts: dict[str, str] = {}
        self.server = Server(machine)
        self.limits = LimitsModel()
        self._replica: Any = None
        self.server.watch = self._served
        self.sinks = {"one": Sink(), "two": Sink()}
        self.requests: list[Asked] = []
        self.live: list[Asked] = []
        self.acks: set[str] = set()
        self.visited: Counter[tuple[str, str]] = Counter()
        self.trace: list[str] = []
        self.numbers = itertools.count()
        self.auditor = Auditor(self)
        self.auditor.look()
        self.tasks: set[Any] = set()
        self._starts = itertools.count()
        self._syncs = 0
        self.workers = [self.start_worker() for _ in range(self.options.workers)]
        machine.loop.set_exception_handler(self._unhandled)
        logger = logging.getLogger("inf_middleware")
        logger.handlers[:] = [_Errors(logging.ERROR)]
        logger.propagate = False
        logger.setLevel(logging.ERROR)

    def start_worker(self) -> Worker:
        """Start a worker process."""
        worker = Worker(self, f"worker-{next(self._starts)}")
        if self.rng.random() < 0.5:
            self._keep(worker.spawn(self.machine.loop, worker.lifespan("startup")))
        return worker

    def running_at_server(self, key: str) -> int:
        """Return how many requests of an account are in progress, as the server says."""
        script, given = load_script(), bytes((Step.SHOW, 1))
        reply = self.server.run_at(self.machine.now_us, script.text, script.sha, [key], [given])
        return int(json.loads(reply)[0][0])

    def note(self, what: str) -> None:
        """Write down what happens, for a replay to be compared with."""
        self.trace.append(f"{self.machine.now_us} {what}")

    def befalls(self, fault: str, *requests: Asked) -> None:
        """Note where requests are when something happens."""
        self.note(fault)
        for request in requests or self.live:
            self.visited[fault, request.state] += 1

    def acknowledged(self, request_id: str) -> None:
        """The ledger says that something is durable."""
        self.acks.add(request_id)

    def check(self) -> None:
        """Judge what has changed since the last step."""
        if self.power.syncs != self._syncs:
            self._syncs = self.power.syncs
            self.auditor.look()

    # callers

    def ask(self, request: Asked, worker: Worker) -> None:
        """Let a caller send a request to a worker."""
        request.worker = worker
        self.requests.append(request)
        self.live.append(request)
        headers = [
            (b"host", b"simulated"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(request.body)),
            (b"authorization", b"Bearer " + request.key.encode()),
        ]
        if request.idempotency_key is not None:
            headers.append((b"idempotency-key", request.idempotency_key.encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 50_000 + request.number % 1000),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        key = request.idempotency_key or ""
        self.note(f"ask {request.number} {request.account} {worker.name} {key}")
        serving = self._serve(request, worker, scope)
        request.task = worker.spawn(self.machine.loop, serving, given=[(REQUEST, request)])
        # Not in the task itself: it may be cancelled before it has begun.
        request.task.add_done_callback(lambda _: self._ended(request), context=worker.context)

    async def _serve(self, request: Asked, worker: Worker, scope: Any) -> None:
        """Do what a server does around an application."""
        body = request.body
        size = -(-len(body) // request.body_pieces)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]

        async def receive() -> Any:
            if pieces and not request.left:
                if request.body_us:
                    await asyncio.sleep(request.body_us / 1e6)
                if not request.left:
                    piece = pieces.pop(0)
                    return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
            await request.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if request.left:
                if request.server_raises:
                    raise OSError("the client is gone")
                return
            self._sees(request, message)
            if request.reads_slowly_us:
                await asyncio.sleep(request.reads_slowly_us / 1e6)

        try:
            await worker.app(scope, receive, send)
        except Exception as error:
            if not (request.raised or isinstance(error, OSError)):
                where = "".join(traceback.format_exception(error))
                Broken(f"request {request.number}: the stack raised {where}")

    def plain(self, account: str) -> Asked:
        """Return a request that nothing is special about."""
        return Asked(
            number=next(self.numbers),
            account=account,
            key=self.keys[account],
            words=5,
            cap=20,
            stream=True,
            asks_usage=False,
            tells_usage=True,
            chunks=[3, 4],
            chunk_us=500,
            fails="",
            listens=False,
            priced=True,
            idempotency_key=None,
            body_pieces=1,
            body_us=0,
            reads_slowly_us=0,
            server_raises=False,
            offset=0,
        )

    def leave(self, request: Asked) -> None:
        """Let the caller of a request leave."""
        self.befalls("leaves", request)
        self.note(f"it was {request.number} {request.state}")
        request.left = True
        request.gone.set()

    def cancel(self, request: Asked) -> None:
        """Let the server give up a request."""
        self.befalls("cancelled", request)
        self.note(f"it was {request.number} {request.state}")
        request.cancelled = True
        assert request.task is not None
        request.task.cancel()

    def _sees(self, request: Asked, message: Any) -> None:
        if message["type"] == "http.response.start":
            if request.answered is not None:
                raise Broken(f"request {request.number} is answered twice")
            request.answered = message["status"]
            request.headers = dict(message["headers"])
            return
        request.received += message.get("body", b"")
        ends = not message.get("more_body", False) or b"data: [DONE]" in message["body"]
        if not ends or request.saw_end:
            return
        request.saw_end = True
        request.gone.set()
        own = request.answered != request.status  # of ours, and not of the app's
        if b"ledger_unavailable" in request.received:
            request.unrecorded = request.served
        elif not own:
            self._is_settled(request)
        if own:
            self._is_one_of_ours(request)

    def _is_settled(self, request: Asked) -> None:
        """Who has seen the end has been billed, durably, and has no slot any more."""
        assert request.call_id is not None
        if not (self.auditor.stored(request.call_id) or self.auditor.spooled(request.call_id)):
            raise Broken(f"request {request.number} saw its end, and is not billed")
        if not request.settled_with_store:
            raise Broken(f"request {request.number} saw its end, and has its slot")

    def _is_one_of_ours(self, request: Asked) -> None:
        answer = json.loads(bytes(request.received))
        request.code = answer["error"]["code"]
        self.note(f"refused {request.number} {request.code}")
        if (request.answered, request.code) not in CODES:
            raise Broken(f"request {request.number}: {request.answered} {request.code}")
        if request.answered in (429, 503) and b"retry-after" not in request.headers:
            raise Broken(f"request {request.number}: {request.code} without retry-after")
        if b"x-request-id" not in request.headers:
            raise Broken(f"request {request.number}: an answer without a name")

    def _ended(self, request: Asked) -> None:
        """Judge what a caller got, when all is over."""
        self.live.remove(request)
        self.note(f"ended {request.number} {request.state} {request.answered} {request.produced}")
        if request.served and not request.call_id:
            raise Broken(f"request {request.number} was served, and has no name")
        if not request.served or request.unrecorded or request.answered != request.status:
            return
        own_usage = b'"usage"' if not (request.asks_usage or not request.stream) else None
        kept = [one for one in request.emitted if own_usage is None or own_usage not in one]
        sent, got = b"".join(kept), bytes(request.received)
        # A stream that is not paid for any further gets an end that its app has not made.
        if not sent.startswith(got) and self.options.mode == "postpaid":
            raise Broken(f"request {request.number} got other bytes than were sent")
        whole = not (request.left or request.cancelled or request.raised)
        if whole and self.options.mode == "postpaid" and got != sent:
            raise Broken(f"request {request.number} got {len(got)} bytes of {len(sent)}")

    # processes

    def kill(self, worker: Worker) -> None:
        """Kill a worker, and start another in its place."""
        self._lose(worker)
        self.workers[self.workers.index(worker)] = self.start_worker()

    def cut_power(self, place: Path) -> None:
        """Cut the power of the host: all workers are gone, and what was not synced may be."""
        for worker in self.workers:
            self._lose(worker)
        place.mkdir()
        spool = Path(f"{self.folder / 'l.db'}.spool")
        if spool.exists():
            spool.rename(Path(f"{place / 'l.db'}.spool"))
        self.folder = place
        self.power.cut(self.rng, place)
        self.auditor.reopen()
        self.auditor.integrity()
        self.auditor.acknowledged_is_stored()
        self.workers = [self.start_worker() for _ in self.workers]

    def _lose(self, worker: Worker) -> None:
        worker.kill(self.machine.loop)
        for request in [request for request in self.live if request.worker is worker]:
            request.killed = True
            self.live.remove(request)

    # the server of the limits

    def replicate(self) -> None:
        """Bring the server's replica to this moment."""
        self.server.replicate()
        self._replica = copy.deepcopy(self.limits)

    def fail_over(self) -> None:
        """Let the replica take over; the promise holds from there."""
        self.server.fail_over()
        self.limits = copy.deepcopy(self._replica) if self._replica else LimitsModel()

    def _served(self, keys: Sequence[bytes], given: Sequence[bytes], reply: bytes) -> None:
        """Judge what the server did, by what it was asked."""
        for one, told in zip(given, json.loads(reply), strict=True):
            step, count = one[:2]
            ours, keys = keys[:count], keys[count:]
            if step == Step.ADMIT:
                self._admitted(ours[0].decode(), one, told)
            elif step == Step.RENEW:
                self._renewed(ours[0].decode(), one, told)
            elif step == Step.SETTLE:
                call, _, tokens, is_known = struct.unpack_from("<8sQQB", one, 2)
                key = ours[0].decode()
                self.limits.settle(self.machine.now_us, key, call, tokens if is_known else None)

    def _admitted(self, key: str, given: bytes, reply: Sequence[int]) -> None:
        call, lease, tokens, enforce, concurrency, slots, rates, *rest = struct.unpack_from(
            "<8sQQBQBBBQQBQQ", given, 2
        )
        assert (given[1], slots, rates) == (1, 1, 2)
        by_metric = {rest[at]: rest[at + 1] for at in (0, 3)}
        self.limits.admit(
            self.machine.now_us,
            key,
            call,
            tokens,
            Bounds(concurrency, by_metric[1], by_metric[2]),
            lease,
            admitted=reply[0] != 0,
            enforced=bool(enforce),
            wait_us=0 if reply[0] else max(reply[5], reply[8]),
            full=bool(reply[2]),
        )
        running, _, _ = self.limits.counts(key, self.machine.now_us)
        if running != reply[1]:
            raise Broken(f"{key}: {reply[1]} in progress, and not {running}")

    def _renewed(self, key: str, given: bytes, reply: Sequence[int]) -> None:
        (lease,) = struct.unpack_from("<Q", given, 2)
        calls = struct.iter_unpack("<8sQ", given[10:])
        for (call, used), is_held in zip(calls, reply, strict=True):
            if self.limits.renew(self.machine.now_us, key, call, used, lease) != bool(is_held):
                raise Broken(f"{call} is lost to one and held to the other")

    def _keep(self, task: Any) -> None:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _unhandled(self, loop: Any, context: Any) -> None:
        error = context.get("exception")
        if isinstance(error, LedgerUnavailable | LimitsUnavailable):
            return  # nobody waits for it any more
        Broken(f"nobody took {context.get('message')}: {error!r}")
