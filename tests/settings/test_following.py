"""Files of levels, prices and accounts are followed: taken over whole, or left as they were."""

import asyncio
import hashlib
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import ConfigError, Gate, TierLimiter, Tiers
from inf_middleware.accounts.toml import TomlAccounts
from inf_middleware.files import TableFile
from inf_middleware.following import LOOK_EVERY_S, Following, Read
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT, Clock, records_of


def sha(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def tiers_text(name: str = "gold", requests: int = 10) -> str:
    return (
        f'[[tier]]\nname = "{name}"\nconcurrency = 9\nrequests_per_minute = {requests}\n'
        "tokens_per_minute = 90000\n"
    )


def accounts_text(tier: str = "gold", more: str = "") -> str:
    return f'[[account]]\nid = "acme"\ntier = "{tier}"\nkeys = ["{sha("k")}"]\n{more}'


def prices_text(price: str = "1") -> str:
    return f'[[price]]\nmodel = "inf-*"\ninput = "{price}"\noutput = "{price}"\n'


class Files:
    """The three files, and what follows them on a clock that is moved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(tiers=tiers_text(), accounts=accounts_text(), prices=prices_text())
        self.clock = Clock()
        self.tiers = TableFile("tiers", folder / "tiers.toml", Tiers.from_table)
        self.accounts = TomlAccounts(folder / "accounts.toml")
        self.taken = 0
        self.following = Following(
            [self.tiers, self.accounts.file],
            check=self._check,
            taken=self._count,
            clock=self.clock,
        )

    def write(self, **texts: str) -> None:
        for name, text in texts.items():
            path = self.folder / f"{name}.toml"
            number = path.stat().st_mtime_ns + 1_000_000 if path.exists() else None
            path.write_text(text, "utf-8")
            if number is not None:
                os.utime(path, ns=(number, number))

    @property
    def level(self) -> str | None:
        account = self.accounts.file.value.accounts[0]
        return f"{account.tier}: {self.tiers.value.named(str(account.tier)).requests_per_minute}"

    def _check(self, read: Read) -> None:
        read.get(self.accounts.file, self.accounts.file.value).check_levels(
            read.get(self.tiers, self.tiers.value)
        )

    def _count(self) -> None:
        self.taken += 1


class MovedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be moved on, so that its timers fall due."""

    moved_s = 0.0

    def time(self) -> float:
        return super().time() + self.moved_s


def run(main: Any) -> None:
    with asyncio.Runner(loop_factory=MovedLoop) as runner:
        runner.run(main)


async def until_limit_is(limit: str, app: Any, **caller: Any) -> None:
    """Send requests, each a turn of the timer after the other, until one is under a limit."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, MovedLoop)
    for _ in range(2000):  # ten seconds of a slow machine
        answered = await post(app, CHAT, **caller)
        assert answered.status == 200
        if answered.headers["x-ratelimit-limit-requests"] == limit:
            return
        loop.moved_s += LOOK_EVERY_S
        await asyncio.sleep(0.005)  # for the thread that reads
    raise AssertionError(f"the limit never became {limit}")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


def test_a_change_is_taken_over_and_what_has_not_changed_is_not_read(tmp_path: Path) -> None:
    files = Files(tmp_path)

    async def go() -> None:
        await files.following.look()
        assert (files.level, files.taken) == ("gold: 10", 0)
        files.write(tiers=tiers_text(requests=20))
        await files.following.look()
        assert (files.level, files.taken) == ("gold: 20", 1)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tiers", "[[tier]]\n[", "tiers.toml: "),
        ("tiers", tiers_text("silver"), "there is no tier 'gold'"),
        ("accounts", accounts_text("silver"), "account 1 (acme): there is no tier 'silver'"),
        ("accounts", accounts_text(more="teir = 1"), "has unknown teir"),
    ],
)
def test_a_mistake_is_told_once_and_changes_nothing(
    name: str, text: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files(tmp_path)

    async def go() -> None:
        files.write(**{name: text})
        await files.following.look()
        await files.following.look()
        assert (files.level, files.taken) == ("gold: 10", 0)
        (told,) = errors(caplog)
        assert words in told
        assert "what was in force stays" in told
        files.write(tiers=tiers_text(requests=5), accounts=accounts_text())
        await files.following.look()
        assert files.level == "gold: 5"

    asyncio.run(go())
    assert len(errors(caplog)) == 1


def test_a_level_that_is_renamed_in_both_files_is_taken_over_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files(tmp_path)

    async def go() -> None:
        files.write(accounts=accounts_text("silver"))  # saved first: it names what is not there yet
        await files.following.look()
        assert files.level == "gold: 10"
        files.write(tiers=tiers_text("silver", 7))
        await files.following.look()
        assert files.level == "silver: 7"

    asyncio.run(go())
    assert len(errors(caplog)) == 1


def test_what_is_right_is_taken_over_beside_what_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files(tmp_path)

    async def go() -> None:
        files.write(accounts=accounts_text("nobody"), tiers=tiers_text(requests=30))
        await files.following.look()
        assert files.level == "gold: 30"
        files.write(tiers=tiers_text(requests=31))
        await files.following.look()
        assert files.level == "gold: 31"

    asyncio.run(go())
    assert len(errors(caplog)) == 1  # the accounts were read again, and nothing new is wrong


def test_a_file_that_is_gone_changes_nothing_and_is_read_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files(tmp_path)

    async def go() -> None:
        (tmp_path / "tiers.toml").unlink()
        await files.following.look()
        await files.following.look()
        assert files.level == "gold: 10"
        files.write(tiers=tiers_text(requests=8))
        await files.following.look()
        assert files.level == "gold: 8"

    asyncio.run(go())
    (told,) = errors(caplog)
    assert "cannot be read" in told


def test_after_a_rest_the_first_request_waits_for_a_look_and_the_next_for_nothing(
    tmp_path: Path,
) -> None:
    files = Files(tmp_path)

    async def go() -> None:
        files.write(tiers=tiers_text(requests=20))
        files.clock.now += LOOK_EVERY_S
        first = files.following.touch()
        assert first is not None
        await first
        assert files.level == "gold: 20"
        assert files.following.touch() is None
        await files.following.aclose()

    asyncio.run(go())


def test_while_requests_come_the_timer_looks_and_none_of_them_waits(tmp_path: Path) -> None:
    files = Files(tmp_path)

    async def go() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovedLoop)
        first = files.following.touch()
        assert first is not None
        await first
        for turn in range(1, 20):
            files.write(tiers=tiers_text(requests=100 + turn))
            loop.moved_s += LOOK_EVERY_S
            files.clock.now += LOOK_EVERY_S
            for _ in range(10_000):
                if files.level == f"gold: {100 + turn}":
                    break
                await asyncio.sleep(0.001)  # for the thread that reads
            assert files.level == f"gold: {100 + turn}"
            assert files.following.touch() is None
        await files.following.aclose()

    run(go())


def test_a_broken_file_is_read_once_and_not_at_every_look(tmp_path: Path) -> None:
    read: list[str] = []

    def parse(table: dict[str, Any], source: str) -> str:
        read.append(source)
        if "bad" in table:
            raise ConfigError("bad")
        return source

    path = tmp_path / "x.toml"
    path.write_text("good = 1\n")
    file = TableFile("tiers", path, parse)
    following = Following([file], check=lambda _: None, taken=lambda: None)

    async def go() -> None:
        path.write_text("bad = 100\n")
        for _ in range(3):
            await following.look()

    asyncio.run(go())
    assert len(read) == 2


def test_no_files_cost_nothing_and_nothing_is_left_behind(tmp_path: Path) -> None:
    def check(read: Read) -> None:
        raise AssertionError

    async def go() -> int:
        nothing = Following([], check=check, taken=lambda: None)
        assert nothing.touch() is None
        files = Files(tmp_path)
        waits = files.following.touch()
        assert waits is not None
        await waits
        await files.following.aclose()
        return len(asyncio.all_tasks())

    before = threading.active_count()
    assert asyncio.run(go()) == 1
    assert threading.active_count() == before


def test_a_stack_takes_over_levels_prices_and_accounts_and_drops_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path)
    (tmp_path / "inf.toml").write_text(
        '[accounts]\nfile = "accounts.toml"\n[tiers]\nfile = "tiers.toml"\n'
        f'[prices]\nfile = "prices.toml"\n[ledger]\nuri = "sqlite:///{tmp_path}/l.db"\n'
    )
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(tmp_path / "inf.toml"))
    answer = JsonApp(completion(usage=usage_of(1, 1)))
    started, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not started.is_set():
            started.set()
            await go_on.wait()
        await answer(scope, receive, send)

    async def go() -> None:
        gate = Gate(app)
        running = asyncio.create_task(post(gate, CHAT, key="k"))
        await started.wait()
        files.write(tiers=tiers_text(requests=2000), prices=prices_text("5"))
        await until_limit_is("2000", gate, key="k")
        go_on.set()
        assert (await running).status == 200
        assert running.result().headers["x-ratelimit-limit-requests"] == "10"

    run(go())
    amounts = [record["amount_nano"] for record in records_of(tmp_path / "l.db")]
    assert amounts[-1] == 2_000  # by the prices that held when it began
    assert amounts[-2] == 10_000


def test_the_tables_of_the_settings_file_are_followed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "inf.toml"
    inline = '[accounts]\nanonymous = "gold"\n' + tiers_text().replace("[[tier]]", "[[tiers.tier]]")
    path.write_text(inline + f'[ledger]\nuri = "sqlite:///{tmp_path}/l.db"\n')
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(path))
    gate = Gate(JsonApp(completion(usage=usage_of(1, 1))))

    async def go() -> None:
        await until_limit_is("10", gate)
        path.write_text(path.read_text().replace("_minute = 10\n", "_minute = 1000\n"))
        await until_limit_is("1000", gate)

    run(go())


def test_a_broken_file_stops_the_server_at_start(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write(tiers="[[tier]]\n")
    with pytest.raises(ConfigError, match=r"tiers\.toml: tier 1 lacks name"):
        Gate(JsonApp({}), tiers=tmp_path / "tiers.toml")


def test_a_call_that_began_before_a_change_brings_nothing_old_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path)
    files.write(prices=prices_text() + "context = 5000\n")
    monkeypatch.setenv("INF_MIDDLEWARE_PRICES", str(tmp_path / "prices.toml"))
    begun, going = asyncio.Event(), asyncio.Event()
    model = JsonApp(completion(usage=usage_of(2, 3)))

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if (b"x-slow", b"1") in scope["headers"]:
            begun.set()
            await going.wait()
        await model(scope, receive, send)

    app = TierLimiter(slow, tiers=tmp_path / "tiers.toml", accounts={"k": "gold"})
    capped = {**CHAT, "max_tokens": 900}

    async def go() -> None:
        first = asyncio.create_task(post(app, capped, key="k", headers=[("x-slow", "1")]))
        await begun.wait()
        files.write(prices=prices_text() + "context = 500\n", tiers=tiers_text(requests=11))
        await until_limit_is("11", app, key="k")
        going.set()
        assert (await first).status == 200
        assert (await post(app, capped, key="k")).status == 400

    run(go())
