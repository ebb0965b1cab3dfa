"""What the proxy costs: a request's latency through it against direct, and its own processor time.

    python -m benchmarks.proxy              # about half a minute

One client, one connection, a model server that answers at once: the whole cost, hidden by nothing.
Rounds of both ways alternate; told are medians over all requests, and the median of the rounds'
ratios. Through the proxy everything is metered, limited and billed into an SQLite ledger.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.processes import Running, free_ports, wait_until

ROUNDS = 7
REQUESTS = 100  # a round
EVENTS = 100  # of a stream

_BODY = {"model": "inf-chat-v1", "max_tokens": 8, "messages": [{"role": "user", "content": "tea?"}]}
_USAGE = {"prompt_tokens": 8, "completion_tokens": EVENTS, "total_tokens": 8 + EVENTS}
_ANSWER = json.dumps(
    {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Tea."}}],
        "usage": _USAGE,
    }
).encode()
_CHUNK = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "t"}}]}
_LAST = {"object": "chat.completion.chunk", "choices": [], "usage": _USAGE}

_LEVEL = """\
[[tiers.tier]]
name = "free"
concurrency = 10
requests_per_minute = 1_000_000
tokens_per_minute = 1_000_000_000
"""


async def model(scope: Any, receive: Any, send: Any) -> None:
    """Answer at once, whole or as a stream."""
    if scope["type"] != "http":
        return
    message = await receive()
    streams = b'"stream"' in message.get("body", b"")
    kind = b"text/event-stream" if streams else b"application/json"
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if streams:
        for chunk in [_CHUNK] * EVENTS + [_LAST]:
            event = f"data: {json.dumps(chunk)}\n\n".encode()
            await send({"type": "http.response.body", "body": event, "more_body": True})
    end = b"data: [DONE]\n\n" if streams else _ANSWER
    await send({"type": "http.response.body", "body": end})


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inf.toml").write_text(
            f'{_LEVEL}[ledger]\nuri = "sqlite:///{folder}/ledger.db"\n'
        )
        near, far = free_ports(2)
        server = _uvicorn("benchmarks.proxy:model", far, folder / "model.txt", {})
        told = {
            "INF_MIDDLEWARE_CONFIG": str(folder / "inf.toml"),
            "INF_MIDDLEWARE_UPSTREAM": f"http://127.0.0.1:{far}",
        }
        proxy = _uvicorn("inf_middleware.proxy:app", near, folder / "proxy.txt", told)
        try:
            for body in (_BODY, {**_BODY, "stream": True}):
                _compare(body, (near, far), proxy.pid, options.rounds, options.requests)
        finally:
            proxy.stop()
            server.stop()


def _uvicorn(app: str, port: int, output: Path, told: dict[str, str]) -> Running:
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port)]
    command += ["--log-level", "warning", "--no-proxy-headers"]
    server = Running(command, output, env=told)

    def answers() -> bool:
        assert server.is_alive, server.said()
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        return True

    wait_until(answers, app)
    return server


def _compare(
    body: dict[str, Any], ports: tuple[int, int], pid: int, rounds: int, requests: int
) -> None:
    times: dict[int, list[float]] = {port: [] for port in ports}
    ratios, own = [], []
    with httpx.Client(trust_env=False, timeout=60) as client:
        for number in range(-1, rounds):  # the first warms up
            medians = {}
            for port in ports:
                began_s = _processor_s(pid)
                took = [_ask(client, port, body) for _ in range(requests)]
                if number < 0:
                    continue
                times[port] += took
                medians[port] = statistics.median(took)
                if port == ports[0]:
                    own.append((_processor_s(pid) - began_s) / requests)
            if medians:
                ratios.append(medians[ports[0]] / medians[ports[1]])
    through, direct = (statistics.median(times[port]) * 1000 for port in ports)
    kind = f"a stream of {EVENTS} events" if "stream" in body else "JSON"
    print(
        f"{kind}: {through:.2f} ms through the proxy, {direct:.2f} ms direct, ratio"
        f" {statistics.median(ratios):.2f}; {through - direct:.2f} ms more;"
        f" {statistics.median(own) * 1000:.2f} ms of the proxy's processor time a request"
    )


def _ask(client: httpx.Client, port: int, body: dict[str, Any]) -> float:
    began_s = time.perf_counter()
    client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body).raise_for_status()
    return time.perf_counter() - began_s


def _processor_s(pid: int) -> float:
    # Fields 14 and 15 of proc(5), in ticks, counted after the name, which may contain spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
