"""The servers that other tests stand on do what those tests need of them."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from limits.storage import (
    RedisClusterStorage,
    RedisSentinelStorage,
    RedisStorage,
    storage_from_string,
)
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.ledgers.postgres_server import program_of_postgres
from tests.processes import Running, paused, wait_until
from tests.redis_servers import (
    PROGRAMS,
    SERVICE,
    redis_cluster,
    redis_sentinels,
    redis_server,
)
from tests.tcp_proxy import proxying

INSTALLER = Path(__file__).with_name("install_servers.sh")

each_program = pytest.mark.parametrize("program", PROGRAMS)


@contextlib.contextmanager
def client(port: int, timeout_s: float = 5.0) -> Iterator[redis.Redis]:
    once = Retry(NoBackoff(), 0)  # the client's own retries would hide what happens
    with contextlib.closing(redis.Redis(port=port, socket_timeout=timeout_s, retry=once)) as found:
        yield found


def check(uri: str, kind: type) -> None:
    """`limits` reaches a server by its URI, as the library does."""
    storage = storage_from_string(uri)
    assert type(storage) is kind
    assert storage.check()
    assert storage.incr("key", 60) == 1
    assert storage.incr("key", 60) == 2
    storage.storage.close()
    for sentinel in storage.sentinel.sentinels if kind is RedisSentinelStorage else ():
        sentinel.close()


@each_program
@pytest.mark.parametrize("kind", [{}, {"tls": True}, {"unix": True}], ids=["tcp", "tls", "unix"])
def test_a_server_is_reached_by_its_uri(program: str, kind: dict[str, bool]) -> None:

    with redis_server(program=program, **kind) as server:
        check(server.uri, RedisStorage)
        pid = server.running.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@each_program
def test_a_cluster_is_reached_by_its_uri(program: str) -> None:

    with redis_cluster(program=program) as cluster:
        check(cluster.uri, RedisClusterStorage)


@each_program
def test_a_replica_takes_the_place_of_a_killed_primary(program: str) -> None:

    with redis_sentinels(program=program) as sentinels:
        check(sentinels.uri, RedisSentinelStorage)
        before = sentinels.primary
        before.ask("SET", "kept", "yes")
        before.ask("WAIT", 1, 5_000)
        sentinels.fail_over()
        assert sentinels.primary is not before
        assert sentinels.primary.ask("GET", "kept") == b"yes"
        assert sentinels.primary.ask("SET", "taken", SERVICE)


@each_program
@pytest.mark.parametrize("keeps_data", [True, False])
def test_a_server_comes_back_on_its_port_with_or_without_its_data(
    program: str, keeps_data: bool
) -> None:
    with redis_server(program=program, appendonly=True) as server:
        port = server.port
        server.ask("SET", "key", "value")
        server.restart(keeps_data=keeps_data)
        assert server.ask("GET", "key") == (b"value" if keeps_data else None)
        assert server.port == port


def test_a_server_outlives_the_thread_that_started_it() -> None:
    with redis_server() as server:
        thread = threading.Thread(target=lambda: server.restart(keeps_data=False))
        thread.start()
        thread.join()
        assert server.ask("PING")


def test_a_server_goes_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    script = "import time; from tests.redis_servers import redis_server\n"
    script += "with redis_server() as s: print(s.running.pid, flush=True); time.sleep(60)"
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(INSTALLER.parent.parent)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        run.kill()
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), "the server is gone")


def test_what_a_stopped_process_leaves_behind_is_stopped_too(tmp_path: Path) -> None:
    # The shell ends at once where it is asked to, and waits for nobody.
    script = "sleep 600 & echo $! > left; exec sleep 600"
    left = tmp_path / "left"
    process = Running(["sh", "-c", f"cd {tmp_path}; {script}"], tmp_path / "out.txt")
    wait_until(lambda: left.exists() and bool(left.read_text()), "the shell has started it")
    process.stop()
    state = Path(f"/proc/{int(left.read_text())}/stat")
    wait_until(lambda: not state.exists() or ") Z" in state.read_text(), "it is gone")


def test_a_paused_server_says_nothing_until_it_goes_on() -> None:
    with redis_server() as server, client(server.port, timeout_s=0.2) as asking:
        assert asking.ping()
        with paused(server.running), pytest.raises(redis.TimeoutError):
            asking.ping()
        assert asking.ping()


def test_a_partition_holds_every_byte_until_it_heals() -> None:
    with (
        redis_server() as server,
        proxying(server.port) as proxy,
        client(proxy.port, timeout_s=0.2) as asking,
    ):
        asking.set("key", "before")
        proxy.partition()
        with pytest.raises(redis.TimeoutError):
            asking.set("key", "meanwhile")
        assert server.ask("GET", "key") == b"before"
        proxy.heal()
        assert asking.ping()


def test_a_partition_of_the_answers_lets_what_is_asked_be_done() -> None:
    with (
        redis_server() as server,
        proxying(server.port) as proxy,
        client(proxy.port, timeout_s=0.2) as asking,
    ):
        assert asking.ping()
        proxy.partition("answers")
        with pytest.raises(redis.TimeoutError):
            asking.set("key", "unheard")
        assert server.ask("GET", "key") == b"unheard"


def test_connections_are_cut_and_new_ones_are_welcome() -> None:
    with redis_server() as server, proxying(server.port) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as raw:
            raw.sendall(b"PING\r\n")
            assert raw.recv(100) == b"+PONG\r\n"
            proxy.cut()
            with pytest.raises(ConnectionError):
                raw.recv(100)
        with client(proxy.port) as asking:
            assert asking.ping()


def test_a_delay_is_at_least_what_was_asked_for_in_each_direction() -> None:
    with redis_server() as server, proxying(server.port) as proxy, client(proxy.port) as asking:
        asking.ping()
        proxy.delay_s = 0.1
        begun = time.monotonic()
        asking.ping()
        assert time.monotonic() - begun >= 0.2


def run_installer(*programs: str) -> subprocess.CompletedProcess[str]:
    """Run it where only some programs are on the path, as nobody in particular."""
    nobody = 65_534 if os.getuid() == 0 else None
    # Neither pytest's own folder nor, maybe, this one is open to everybody.
    with tempfile.TemporaryDirectory() as path, INSTALLER.open() as script:
        Path(path).chmod(0o755)
        for name in programs:
            Path(path, name).symlink_to(shutil.which(name) or program_of_postgres(name))
        command = [str(shutil.which("sh")), "-s"]
        environment = {"PATH": path, "POSTGRESQL_LIB": path}
        return subprocess.run(
            command, stdin=script, env=environment, user=nobody, capture_output=True, text=True
        )


def test_nothing_is_installed_where_all_is_there() -> None:
    done = run_installer("redis-server", "openssl", "chromium", "curl", "faketime", "initdb")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_who_may_not_install_is_told_what_to_run() -> None:
    done = run_installer(
        "id",
        "openssl",
        "chromium",
        "curl",
        "faketime",
        "initdb",
        *filter(shutil.which, ["apt-get"]),
    )
    assert done.returncode == 1
    assert "install" in done.stderr
    assert done.stderr.endswith(" redis-server\n")


def test_where_there_is_no_apt_all_that_is_missing_is_named() -> None:
    done = run_installer("id")
    assert done.returncode == 1
    assert done.stderr.endswith(": redis-server openssl chromium curl faketime postgresql\n")
