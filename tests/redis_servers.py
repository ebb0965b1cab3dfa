"""Real Redis servers on free ports: single, TLS, unix socket, Cluster, Sentinel.

Each lives in a folder of its own and is stopped by its pid. `PROGRAMS` are those of this machine:
Redis always, and Valkey where it is installed. Debian packages Valkey from release 13 on; on
Debian 12 there is none, and nothing here claims that it was tried.
"""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from tests.processes import Running, free_ports, wait_until

PROGRAMS = [name for name in ("redis-server", "valkey-server") if shutil.which(name)]

SERVICE = "mymaster"  # the name of the primary in the Sentinel set
_CLUSTER_SLOTS = 16_384


class RedisServer:
    """One server; `start` again after `stop` or `kill` uses the same port and what is on disk."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        program: str = "redis-server",
        appendonly: bool = False,
        unix: bool = False,
        tls: bool = False,
    ) -> None:
        self.folder = folder
        self.folder.mkdir()
        (self.port,) = free_ports(1)
        self.certificate = folder / "server.crt"
        self._tls = tls
        self._socket = folder / "redis.sock" if unix else None
        self._command = [program, "--dir", str(folder), "--save", "", "--bind", "127.0.0.1"]
        self._command += ["--appendonly", "yes" if appendonly else "no"]
        # What it has written outlives a killed process without fsync; only a power cut needs that.
        self._command += ["--appendfsync", "no"]
        if tls:
            key = _self_signed(self.certificate)
            self._command += ["--port", "0", "--tls-port", str(self.port)]
            self._command += ["--tls-cert-file", str(self.certificate), "--tls-key-file", str(key)]
            self._command += ["--tls-ca-cert-file", str(self.certificate)]
            self._command += ["--tls-auth-clients", "no"]
        else:
            self._command += ["--port", str(0 if unix else self.port)]
        if unix:
            self._command += ["--unixsocket", str(self._socket)]
        self._command += options
        self.process: Running | None = None

    @property
    def uri(self) -> str:
        """In the notation of `limits`."""
        if self._socket:
            return f"redis+unix://{self._socket}"
        if self._tls:
            return f"rediss://127.0.0.1:{self.port}?ssl_ca_certs={self.certificate}"
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        process = self.process = Running(self._command, self.folder / "log")

        def answers() -> bool:
            assert process.is_alive, f"it ended at start: {process.said()}"
            with contextlib.suppress(redis.RedisError):
                return self.ask("PING") in (b"PONG", True)
            return False

        wait_until(answers, f"{self._command[0]} on {self.uri} answers")

    @property
    def running(self) -> Running:
        assert self.process is not None, "it was not started"
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None

    def restart(self, *, keeps_data: bool) -> None:
        """Killed, as in an accident, and back on the same port; data stay only with appendonly."""
        self.running.kill()
        if not keeps_data:
            self.forget()
        self.start()

    def forget(self) -> None:
        """Throw away what is on disk, while it is down."""
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)

    def ask(self, *command: str | int) -> Any:
        """Send one command over a connection of its own."""
        url = self.uri.replace("redis+unix", "unix")
        with contextlib.closing(redis.Redis.from_url(url, socket_timeout=2)) as client:
            return client.execute_command(*command)


@contextlib.contextmanager
def redis_server(**options: Any) -> Iterator[RedisServer]:
    """One server; takes the options of `RedisServer`."""
    with _folder() as folder, _started([RedisServer(folder / "redis", **options)]) as (server,):
        yield server


class RedisCluster:
    """Three primaries that share the slots."""

    def __init__(self, nodes: Sequence[RedisServer]) -> None:
        self.nodes = list(nodes)

    @property
    def uri(self) -> str:
        """In the notation of `limits`."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def slots_in_use(self) -> list[int]:
        """The slots of all keys there are."""
        return sorted({key_slot(key) for node in self.nodes for key in node.ask("KEYS", "*")})

    def move(self, slot: int) -> None:
        """Move a slot with its keys to the next node, as `redis-cli --cluster reshard` does."""
        source, target = self.ends_of(slot)
        target.ask("CLUSTER SETSLOT", slot, "IMPORTING", source.ask("CLUSTER MYID"))
        heir = target.ask("CLUSTER MYID")
        source.ask("CLUSTER SETSLOT", slot, "MIGRATING", heir)
        while keys := source.ask("CLUSTER GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
        for node in (target, source, *self.nodes):
            node.ask("CLUSTER SETSLOT", slot, "NODE", heir)

    def ends_of(self, slot: int) -> tuple[RedisServer, RedisServer]:
        """The node that has a slot, and the next one."""
        ids = [node.ask("CLUSTER MYID") for node in self.nodes]
        (owner,) = [
            node_id
            for first, last, (_, _, node_id, *_) in self.nodes[0].ask("CLUSTER SLOTS")
            if first <= slot <= last
        ]
        place = ids.index(owner)
        return self.nodes[place], self.nodes[(place + 1) % len(ids)]


@contextlib.contextmanager
def redis_cluster(*, program: str = "redis-server") -> Iterator[RedisCluster]:
    """A Cluster of three, ready: each node says `cluster_state:ok` and knows all three."""
    buses = free_ports(3)
    with _folder() as folder:
        nodes = [
            RedisServer(
                folder / str(number),
                *("--cluster-enabled", "yes", "--cluster-port", str(bus)),
                *("--cluster-node-timeout", "2000"),
                program=program,
            )
            for number, bus in enumerate(buses)
        ]
        with _started(nodes):
            share = -(-_CLUSTER_SLOTS // len(nodes))
            # Epochs first: a node that has met another has one already.
            for number, node in enumerate(nodes):
                node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
            for number, node in enumerate(nodes):
                last = min((number + 1) * share, _CLUSTER_SLOTS) - 1
                node.ask("CLUSTER ADDSLOTSRANGE", number * share, last)
                nodes[0].ask("CLUSTER MEET", "127.0.0.1", node.port, buses[number])
            wait_until(lambda: all(map(_is_cluster, nodes)), "the cluster is one")
            yield RedisCluster(nodes)


def _is_cluster(node: RedisServer) -> bool:
    info = node.ask("CLUSTER INFO")
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3"


class RedisSentinels:
    """A primary, its replica, and three sentinels of which two decide on a failover."""

    def __init__(self, servers: Sequence[RedisServer], sentinels: Sequence[RedisServer]) -> None:
        self.servers = list(servers)
        self.sentinels = list(sentinels)

    @property
    def uri(self) -> str:
        """In the notation of `limits`."""
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{SERVICE}"

    @property
    def primary(self) -> RedisServer:
        """The server that a majority of the sentinels names."""
        named = [int(s.ask("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)[1]) for s in self.sentinels]
        (found,) = [server for server in self.servers if named.count(server.port) >= 2]
        return found

    def fail_over(self) -> None:
        """Kill the primary, and wait until its replica has taken its place."""
        old = self.primary
        (heir,) = [server for server in self.servers if server is not old]
        old.running.kill()

        def has_succeeded() -> bool:
            # Who is promoted lets go of its clients for a moment.
            with contextlib.suppress(redis.RedisError, ValueError):
                return heir.ask("INFO", "replication")["role"] == "master" and self.primary is heir
            return False

        wait_until(has_succeeded, "the replica is promoted")


@contextlib.contextmanager
def redis_sentinels(*, program: str = "redis-server") -> Iterator[RedisSentinels]:
    """A Sentinel set, ready: the replica has its link, and each sentinel knows all others."""
    with _folder() as folder, contextlib.ExitStack() as stack:
        primary = RedisServer(folder / "primary", program=program)
        stack.enter_context(_started([primary]))
        of_primary = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        replica = RedisServer(folder / "replica", *of_primary, program=program)
        stack.enter_context(_started([replica]))
        sentinels = []
        for number in range(3):
            config = folder / f"sentinel{number}.conf"
            config.write_text(
                f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} 500\n"
                f"sentinel failover-timeout {SERVICE} 2000\n"
            )
            sentinels.append(_Sentinel(folder / f"sentinel{number}", config, program))
        stack.enter_context(_started(sentinels))
        whole = RedisSentinels([primary, replica], sentinels)
        wait_until(lambda: _is_replicated(primary), "the replica has its link")
        wait_until(lambda: all(map(_knows_all, sentinels)), "the sentinels know each other")
        yield whole


class _Sentinel(RedisServer):
    def __init__(self, folder: Path, config: Path, program: str) -> None:
        super().__init__(folder, program=program)
        places = ["--dir", str(folder), "--bind", "127.0.0.1", "--port", str(self.port)]
        self._command = [program, str(config), "--sentinel", *places]


def _is_replicated(primary: RedisServer) -> bool:
    info = primary.ask("INFO", "replication")
    return info["connected_slaves"] == 1 and info["slave0"]["state"] == "online"


def _knows_all(sentinel: RedisServer) -> bool:
    info = sentinel.ask("INFO", "sentinel")["master0"]
    return info["status"] == "ok" and info["slaves"] == 1 and info["sentinels"] == 3


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # Not pytest's own: its paths are longer than the 107 bytes a unix socket may have.
    with tempfile.TemporaryDirectory(prefix="inf-redis-") as name:
        yield Path(name)


@contextlib.contextmanager
def _started(servers: Sequence[RedisServer]) -> Iterator[Sequence[RedisServer]]:
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            server.start()
        yield servers


def _self_signed(certificate: Path) -> Path:
    """Make a certificate for 127.0.0.1 that is its own authority; returns the path of its key."""
    key = certificate.with_suffix(".key")
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=tests"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return key
