"""A real PostgreSQL of our own: a fresh cluster on a unix socket, stopped by its pid."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

_START_TIMEOUT_S = 30.0


def program_of_postgres(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name) or name


class PostgresServer:
    """One cluster; `uri` names a database of its own for each test.

    It is reached by a unix socket, and by a `port` of this host where one is given. As a `copy_of`
    another it is its standby.
    """

    def __init__(
        self, folder: Path, port: int | None = None, copy_of: "PostgresServer | None" = None
    ) -> None:
        self.folder = folder
        self.port = port
        self._addresses = "" if port is None else "127.0.0.1"
        self._port = port or 5432  # of a unix socket only a part of its name
        self._where = ["-h", str(folder), "-p", str(self._port)]
        self.data = folder / "data"
        self._databases = 0
        self.process: subprocess.Popen[bytes] | None = None
        # PostgreSQL does not run as root.
        self._user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        if copy_of is None:
            how = ["initdb", "-A", "trust", "-E", "UTF8"]
        else:
            how = ["pg_basebackup", "-R", "-c", "fast", "-w", *copy_of._where]
        program, *options = how
        self.call([program_of_postgres(program), "-D", str(self.data), "-U", "postgres", *options])

    def start(self) -> None:
        command = [program_of_postgres("postgres"), "-D", str(self.data), "-k", str(self.folder)]
        command += ["-c", f"listen_addresses={self._addresses}", "-p", str(self._port)]
        command += ["-c", "max_connections=60"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._as_user()
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.is_ready():
            assert self.process.poll() is None, "PostgreSQL ended at start"
            assert time.monotonic() < deadline, "PostgreSQL did not start in time"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def uri(self) -> str:
        """Make a database, and return where it is, by the unix socket."""
        return self.uris(self._port)[0]

    def uris(self, way: int) -> tuple[str, str]:
        """Make a database; return where it is, and where by a port that leads to the server's."""
        self._databases += 1
        name = f"test{self._databases}"
        self.call([program_of_postgres("createdb"), *self._where, "-U", "postgres", name])
        straight = f"postgresql://postgres@/{name}?host={self.folder}&port={self._port}"
        return straight, f"postgresql://postgres@127.0.0.1:{way}/{name}"

    def promote(self) -> None:
        """Make a standby the one that takes writes, and wait until it is."""
        self.call([program_of_postgres("pg_ctl"), "promote", "-D", str(self.data), "-w"])

    def is_ready(self) -> bool:
        """Tell whether it takes connections: it does not while it recovers."""
        command = [program_of_postgres("pg_isready"), "-q", *self._where]
        return subprocess.run(command).returncode == 0

    def call(self, command: list[str]) -> None:
        """Run a program as the user whose server it is."""
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._as_user())

    def _as_user(self) -> dict[str, int]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid}


@contextlib.contextmanager
def serving_postgres(port: int | None = None) -> Iterator[PostgresServer]:
    # A short path: that of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder), port)
        server.start()
        try:
            yield server
        finally:
            # At once: what is thrown away need not be written to the disk, which for the databases
            # of some hundred tests takes a busy disk more than half a minute.
            server.stop(signal.SIGQUIT)


class Deaf:
    """A server that takes connections and says nothing; `came`: how many have come."""

    def __init__(self) -> None:
        self.came = 0
        self.port = 0

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take what one says, until it has gone."""
        self.came += 1
        await reader.read()
        writer.close()


@contextlib.asynccontextmanager
async def listening_deaf() -> AsyncIterator[Deaf]:
    """Have a server listen that never says anything."""
    deaf = Deaf()
    server = await asyncio.start_server(deaf.hear, "127.0.0.1", 0)
    deaf.port = server.sockets[0].getsockname()[1]
    try:
        yield deaf
    finally:
        server.close()
