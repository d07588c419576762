"""PostgreSQL servers for the tests: from the distribution's package, on a Unix socket in a temporary directory.

A server that is run as root refuses to start, so it runs as the user that the package made, or as nobody. It syncs
what it commits, unless it is told not to. Every process that is started here is ended here.
"""

import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time

import psycopg

from lmdbqueue.postgres import PostgresQueue

PATIENCE = 60.0  # seconds

_SETTINGS = {"listen_addresses": "", "shared_buffers": "32MB", "max_connections": "200", "fsync": "on"}


def programs():
    """Return the directory of the server's programs, None if there is no server here."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[-3]))
    path = found[-1] if found else shutil.which("initdb")
    return os.path.dirname(os.path.realpath(path)) if path else None


def _user():
    """Return the user that a server runs as, None for this one."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    message = "a server must not be run as root, and there is no user postgres or nobody"
    raise LookupError(message)


def age(execute, schema, seconds):
    """Let all that a schema knows of times be so many seconds ago."""
    execute(f"""
        UPDATE "{schema}".items SET until = until - {seconds} * interval '1 second',
            pushed_at = pushed_at - {seconds} * interval '1 second',
            expires_at = expires_at - {seconds} * interval '1 second';
        UPDATE "{schema}".readers SET seen = seen - {seconds} * interval '1 second';
    """)


class Server:
    """One server, in a directory of its own."""

    def __init__(self, place=None, **settings):
        self._user = _user()
        self.place = place or tempfile.mkdtemp(prefix="lmdbqueue-pg-", dir="/tmp")
        self.data = os.path.join(self.place, "data")
        self.settings = _SETTINGS | settings
        self._process = None
        self._log = os.path.join(self.place, "log")
        if self._user is not None:
            os.chown(self.place, self._user.pw_uid, self._user.pw_gid)

    def create(self):
        self.call("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "--no-locale", "-E", "UTF8")
        return self

    def start(self):
        """Start it, and wait until it takes connections. A predecessor that was killed may be on its way out."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._run()
            while self._process.poll() is None:
                try:
                    psycopg.connect(self.url(), connect_timeout=2).close()
                except psycopg.OperationalError:
                    assert time.monotonic() < deadline, self.log()
                    time.sleep(0.01)
                else:
                    return self
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def _run(self):
        options = [word for name, value in self.settings.items() for word in ("-c", f"{name}={value}")]
        command = [os.path.join(programs(), "postgres"), "-D", self.data, "-k", self.place, *options]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **self._as_user()
            )

    def url(self, database="postgres"):
        return f"postgresql://postgres@/{database}?host={self.place}"

    def kill(self):
        """Kill its parent process; its children end by themselves when they see that."""
        self._end(signal.SIGKILL)

    def stop(self):
        """Stop it at once, as if the power had gone."""
        self._end(signal.SIGQUIT)

    def _end(self, number):
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE)
        self._process = None

    def remove(self):
        self.stop()
        deadline = time.monotonic() + PATIENCE
        while os.path.exists(self.place):
            shutil.rmtree(self.place, ignore_errors=True)  # children that still end may write a file
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def call(self, program, *arguments):
        result = subprocess.run(
            [os.path.join(programs(), program), *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=self.place,
            **self._as_user(),
        )
        assert result.returncode == 0, result.stdout + result.stderr

    def execute(self, statement, *values):
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def log(self):
        with open(self._log, encoding="utf-8", errors="replace") as file:
            return file.read()[-5000:]

    def _as_user(self):
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


_TABLES = ("items", "claims", "ledger", "marks", "owners", "queues", "readers", "sleepers", "state", "tails")
_SHAPE = """
SELECT array_agg(concat_ws(' ', relname, relkind, relacl, attname, attnum, tgname) ORDER BY relname, attnum, tgname)
FROM pg_class
JOIN pg_namespace n ON n.oid = relnamespace AND nspname = %s
LEFT JOIN pg_attribute ON attrelid = pg_class.oid LEFT JOIN pg_trigger ON tgrelid = pg_class.oid
"""


class KeptSchema:
    """A schema that is emptied after each test, and left for a new one if a test changed it or still holds it."""

    def __init__(self, server):
        self._server = server
        self._take()

    def empty(self):
        """Remove all rows, and what is left of them: after some hundred tests each look would pass thousands."""
        tables = [f'"{self.name}".{table}' for table in _TABLES]
        removed = "".join(f"DELETE FROM {table};" for table in tables)
        try:
            self._connection.execute(f"BEGIN; SET LOCAL lock_timeout = '2s'; {removed} COMMIT")
            self._connection.execute(f"VACUUM (SKIP_LOCKED) {', '.join(tables)}")
            is_as_made = self._look() == self._made
        except psycopg.Error:
            is_as_made = False
        if not is_as_made:
            self.close()
            self._take()

    def close(self):
        self._connection.close()

    def _take(self):
        self.name = f"test_{os.urandom(4).hex()}"
        PostgresQueue(self._server.url(), "first", schema=self.name).close()
        self._connection = psycopg.connect(self._server.url(), autocommit=True)
        self._made = self._look()

    def _look(self):
        meta = self._connection.execute(f'SELECT * FROM "{self.name}".meta').fetchall()
        return meta, self._connection.execute(_SHAPE, [self.name]).fetchall()
