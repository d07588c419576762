"""What docs/scaling.md and README say of PostgreSQL and the forwarder is so: their examples run, on real servers."""

import http.server
import json
import os
import re
import threading

import pytest

import lmdbqueue
from lmdbqueue.forward import Forwarder
from lmdbqueue.postgres import PostgresQueue

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def blocks(name, language):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return re.findall(rf"^```{language}\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)


def execute(code, names):
    exec(compile(code, "docs", "exec"), names)  # noqa: S102


@pytest.fixture
def here(postgres, tmp_path, monkeypatch):
    """Let examples use a database of their own, which is the only thing that is changed in them."""
    monkeypatch.chdir(tmp_path)
    postgres.execute("CREATE DATABASE app")
    with lmdbqueue.PersistentQueue("spool", name="jobs") as spool:
        spool.push([1, 2, 3])
    yield lambda code: code.replace("postgresql://localhost/app", postgres.url("app"))
    postgres.execute("DROP DATABASE app WITH (FORCE)")


def test_the_example_of_readme_moves_a_queue(here):
    code = next(code for code in blocks("README.md", "python") if "Forwarder(" in code)
    names = {"PersistentQueue": lmdbqueue.PersistentQueue}
    execute(here(code), names)
    with names["central"] as central:
        assert central.pop(9) == [1, 2, 3]


def test_the_examples_of_scaling_do_what_they_say(here, capsys):
    first, outbox, *_, moving, _ = blocks("docs/scaling.md", "python")
    names = {}
    execute(here(first), names)
    with names["queue"] as queue:
        assert capsys.readouterr().out == "['a', 'b']\n"
        with queue.transaction() as txn:
            txn.connection.execute("CREATE TABLE orders (what text)")
        execute(here(outbox), names)
        with queue.transaction() as txn:
            assert txn.connection.execute("SELECT what FROM orders").fetchall() == [("tea",)]
        assert queue.pop(9) == ["c", {"order": "tea"}]
        execute(here(moving), names)
        assert queue.peek(9) == [1, 2, 3]
        assert capsys.readouterr().out == "3 0\n"
        query = blocks("docs/scaling.md", "sql")[0]
        with queue.transaction() as txn:
            assert txn.connection.execute(query).fetchall() == [("jobs", "waiting", 3, 4)]


def test_the_examples_of_readers_and_of_asyncio_do_what_they_say(here, capsys):
    readers, tasks = blocks("docs/scaling.md", "python")[2:4]
    execute(here(readers), {"PostgresQueue": PostgresQueue})
    assert capsys.readouterr().out == "['a', 'b'] a 3\n"
    names = {}
    execute(here(tasks), names)
    assert names["asyncio"].run(names["main"]()) == 0


class _Jobs(http.server.BaseHTTPRequestHandler):
    """Takes batches, leaves out those that it has, and fails at every second try."""

    def do_POST(self):
        server = self.server
        key = self.headers["Idempotency-Key"]
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.tries += 1
        is_new = key not in server.keys
        if is_new:
            server.keys.append(key)
            server.items += items
        self.send_response(503 if server.tries % 2 else 200)  # the first time it has stored, and says it has not
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_example_of_a_target_of_your_own_forwards_to_a_server(open_queue):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Jobs)
    server.tries, server.keys, server.items = 0, [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        code = next(code for code in blocks("docs/scaling.md", "python") if "HttpTarget" in code)
        names = {}
        execute(code, names)
        queue = open_queue(dumps=str.encode, loads=bytes.decode)
        queue.push(["a", "b", "c"])
        target = names["HttpTarget"](f"http://127.0.0.1:{server.server_port}/jobs")
        done = Forwarder(queue, target, batch=2, pause=0.01).run()
        assert (done.items, done.failures, server.items) == (3, 2, ["a", "b", "c"])
        assert len(queue) == 0
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_role_that_may_create_nothing_can_use_a_schema_that_was_made_for_it(postgres):
    postgres.execute("CREATE ROLE service LOGIN")
    postgres.execute("CREATE SCHEMA service AUTHORIZATION service")
    url = postgres.url().replace("postgres@", "service@")
    with PostgresQueue(url, schema="service") as queue:
        queue.push([1, 2])
        with queue.lease():
            pass
        queue.flush()
        assert queue.pop() == 2
    with pytest.raises(lmdbqueue.ServerError, match="permission denied"):
        PostgresQueue(url, schema="another")
    postgres.execute("DROP SCHEMA service CASCADE")
    postgres.execute("DROP ROLE service")


def test_the_command_of_scaling_is_one_that_there_is():
    (command,) = (code for code in blocks("docs/scaling.md", "sh") if "lmdbqueue forward" in code)
    with pytest.raises(SystemExit) as caught:
        lmdbqueue_main([*command.split()[1:], "--help"])
    assert caught.value.code == 0


def lmdbqueue_main(arguments):
    from lmdbqueue.cli import main  # noqa: PLC0415

    main(arguments)
