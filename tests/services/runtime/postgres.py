"""A PostgreSQL of the tests' own: in a temporary folder, reached through a socket in it, gone with the tests."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

USER = "ltxtrain"
# It refuses to run as root.
UNPRIVILEGED = "nobody"
DEBIAN = "/usr/lib/postgresql"
SOCKET = ".s.PGSQL.5432"
# What is committed outlives the end of the process, not of the machine.
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
}


def program(name: str) -> str | None:
    """Where a program of PostgreSQL is, if it is installed."""
    newest_first = sorted(Path(DEBIAN).glob(f"*/bin/{name}"), key=lambda path: -int(path.parts[-3]))
    return shutil.which(name) or next((str(path) for path in newest_first), None)


class Postgres:
    """A server that can be stopped and started again, with any number of empty databases."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    @property
    def socket(self) -> Path:
        """Where its URLs look for it."""
        return self._folder / SOCKET

    def start_elsewhere(self) -> Path:
        """As start, with another socket, which is returned: as a server that is back on another machine."""
        folder = self._folder / "elsewhere"
        if not folder.exists():
            folder.mkdir()
            os.chown(folder, self._folder.stat().st_uid, self._folder.stat().st_gid)
        self.socket.unlink(missing_ok=True)
        self.start(folder)
        return folder / SOCKET

    def start(self, folder: Path | None = None) -> None:
        """Return when it accepts connections by a socket in the folder, else in its own."""
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [
            *_as_user(),
            _required("postgres"),
            "-D",
            f"{self._folder}/data",
            "-k",
            str(folder or self._folder),
            *settings,
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=self._folder)
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "ready to accept connections" in line:
                break
        else:
            raise RuntimeError(f"PostgreSQL did not start:\n{''.join(said)}")
        # Its log would fill the pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        self._process = process

    def stop(self) -> None:
        """End every connection and the server at once, as a crash would: it writes nothing more."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    @property
    def is_stopped(self) -> bool:
        return self._process is None

    def new_database(self) -> str:
        """SQLAlchemy's URL of a database that is empty and was not there before."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def emptied_database(self) -> str:
        """The same database each time, empty again, which is quicker. Nobody may use it any more."""
        statements = "SET lock_timeout = '10s'; DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        self.execute(sql.SQL(statements))
        return self.url("postgres")

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self._folder}"

    def execute(self, statement: sql.SQL | sql.Composed, database: str = "postgres") -> None:
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            connection.execute(statement)

    def dsn(self, database: str) -> str:
        return f"host={self._folder} user={USER} dbname={database}"


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    # Its path is short enough for a socket's, and the unprivileged user may reach it.
    folder = Path(tempfile.mkdtemp(prefix="ltxtrain-pg-"))
    try:
        if os.geteuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            os.chown(folder, user.pw_uid, user.pw_gid)
        options = ["-D", f"{folder}/data", "-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run([*_as_user(), _required("initdb"), *options], check=True, capture_output=True, cwd=folder)
        server = Postgres(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_user() -> list[str]:
    """The beginning of a command that runs as a user whom PostgreSQL accepts, and ends with this process."""
    tied = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() != 0:
        return tied if shutil.which("setpriv") else []
    user = pwd.getpwnam(UNPRIVILEGED)
    return [*tied, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _required(name: str) -> str:
    found = program(name)
    assert found is not None, f"{name} is not installed"
    return found
