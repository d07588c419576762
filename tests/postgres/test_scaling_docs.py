"""What docs/scaling.md says of targets of your own and of roles is so; that its examples run is ``test_examples``."""

import http.server
import json
import threading

import pytest
from examples import blocks

import lmdbqueue
from lmdbqueue.forward import Forwarder
from lmdbqueue.postgres import PostgresQueue


class _Jobs(http.server.BaseHTTPRequestHandler):
    """Takes items, leaves out those that it has, and fails at every second try, while more is pushed."""

    def do_POST(self):
        server = self.server
        source = self.headers["Source"]
        for each in json.loads(self.rfile.read(int(self.headers["Content-Length"]))):
            server.items.setdefault((source, each["number"]), each["item"])
        server.tries += 1
        if server.tries == 1:
            server.queue.push(["d", "e"])  # so that the next batch begins with the same item, and has more
        self.send_response(503 if server.tries % 2 else 200)  # the first time it has stored, and says it has not
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_example_of_a_target_of_your_own_forwards_to_a_server(open_queue):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Jobs)
    server.queue = queue = open_queue(dumps=str.encode, loads=bytes.decode)
    server.tries, server.items = 0, {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        code = next(code for code in blocks("docs/scaling.md", "python") if "HttpTarget" in code)
        names = {}
        exec(compile(code, "docs/scaling.md", "exec"), names)  # noqa: S102
        queue.push(["a", "b", "c"])
        target = names["HttpTarget"](f"http://127.0.0.1:{server.server_port}/jobs")
        done = Forwarder(queue, target, batch=10, pause=0.01).run()
        assert (done.items, done.failures, [*server.items.values()]) == (5, 1, ["a", "b", "c", "d", "e"])
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
