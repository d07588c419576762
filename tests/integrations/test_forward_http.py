"""Items over HTTP, against a real server that fails in every way."""

import base64
import contextlib
import http.server
import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from functools import partial
from typing import NamedTuple

import pytest
from processes import KILLED, forked, status_of

from lmdbqueue import PersistentQueue
from lmdbqueue.forward import (
    AwayError,
    Batch,
    Forwarder,
    HttpTarget,
    Mark,
    MqttTarget,
    Origin,
    RefusedError,
    Target,
    _http,
    as_bytes,
    as_json_lines,
    as_json_with_headers,
)

QUICK = {"pause": 0.01}


class Server(http.server.ThreadingHTTPServer):
    """Answers as its ``script`` says, one entry a request, then with 200; keeps what came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = []
        self.patience = threading.Event()  # set at the end
        self.requests = []  # (headers, body) of each
        self.taken = []  # bodies that were answered with 200
        self.judge = lambda _body: None  # returns an answer, None for 200
        self.url = f"http://127.0.0.1:{self.server_port}/items?a=b"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self):
        self.patience.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


class Slow(NamedTuple):
    """An answer that never ends."""

    start: bytes
    part: bytes = b"."


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((dict(self.headers), body, self.path))
        answer = self.server.script.pop(0) if self.server.script else self.server.judge(body)
        if answer == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if answer == "nonsense":
            self.wfile.write(b"SMTP ready\r\n\r\n")
            self.close_connection = True
            return
        if answer == "half":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"only this")
            self.close_connection = True
            return
        if isinstance(answer, Slow):
            with contextlib.suppress(OSError):
                self.wfile.write(answer.start)
                while not self.server.patience.wait(0.01):
                    self.wfile.write(answer.part)
            self.close_connection = True
            return
        if answer == "silence":
            self.server.patience.wait(60)
            self.close_connection = True
            return
        status, text, headers = answer or (200, "", {})
        if status == 200:
            self.server.taken.append(body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
        if "Close" in headers:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


def answered(status, text="", **headers):
    return status, text, {name.replace("_", "-"): value for name, value in headers.items()}


# --- what is sent


def test_each_item_is_a_request_of_its_own_in_order_with_a_key(server, open_queue):
    queue = open_queue()
    queue.push([{"sensor": 7, "value": 21.5}, "text", None])
    target = HttpTarget(server.url, {"X-Site": "north", "user-agent": "mine"})
    done = Forwarder(queue, target).run()
    assert [json.loads(body) for body in server.taken] == [{"sensor": 7, "value": 21.5}, "text", None]
    assert (done.items, done.batches, done.refused, len(queue)) == (3, 3, 0, 0)
    headers = [headers for headers, _, _ in server.requests]
    uuid = queue._engine.environment.directory.options.uuid
    assert [each["Idempotency-Key"] for each in headers] == [f"{uuid}-queue-{seq}" for seq in range(3)]
    assert {(each["Content-Type"], each["X-Site"], each["user-agent"]) for each in headers} == {
        ("application/json", "north", "mine")
    }
    assert {path for _, _, path in server.requests} == {"/items?a=b"}


def run_slowly(server, open_queue, answer):
    """Return what a forwarder did of two items, the first of which has a slow answer at first."""
    server.script = [answer]
    queue = open_queue()
    queue.push(["a", "b"])
    done = []
    forwarder = Forwarder(queue, HttpTarget(server.url, timeout=2.0), **QUICK)
    thread = threading.Thread(target=lambda: done.append(forwarder.run()), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return done[0]


@pytest.mark.parametrize(
    ("length", "part"),
    [(b"Transfer-Encoding: chunked", b"1\r\n.\r\n"), (b"Content-Length: 60000", b"."), (b"X: y", b".")],
)
@pytest.mark.parametrize("status", [b"200 OK", b"400 No"])
def test_an_answer_that_never_ends_is_not_waited_for_and_its_status_counts(server, open_queue, status, length, part):
    done = run_slowly(server, open_queue, Slow(b"HTTP/1.1 " + status + b"\r\n" + length + b"\r\n\r\n", part))
    assert (done.items, done.refused, done.failures) == ((2, 0, 0) if status == b"200 OK" else (1, 1, 0))


@pytest.mark.parametrize("start", [b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_a_head_that_never_ends_is_not_waited_for(server, open_queue, start):
    done = run_slowly(server, open_queue, Slow(start))
    assert (done.items, done.refused) == (2, 0)
    assert done.failures >= 1


def test_a_batch_is_one_request(server, open_queue):
    queue = open_queue(dumps=lambda item: json.dumps(item).encode(), loads=json.loads)
    queue.push(list(range(7)))
    Forwarder(queue, HttpTarget(server.url, batch=3)).run()
    queue.push(list(range(3)))
    Forwarder(queue, HttpTarget(server.url, None, as_json_lines, 3)).run()
    assert server.taken == [b"[0,1,2]", b"[3,4,5]", b"[6]", b"0\n1\n2\n"]
    assert server.requests[0][0]["Idempotency-Key"].endswith("-queue-0-2-3")
    assert server.requests[3][0]["Content-Type"] == "application/x-ndjson"
    queue.push(["x" * 100] * 3)
    Forwarder(queue, HttpTarget(server.url, batch=3, max_bytes=210)).run()
    assert list(map(len, server.taken[4:])) == [207, 104]


TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=1,b=2"}
NOT_OF_HTTP = {
    "a name": "x",
    "naïve": "x",
    "": "x",
    "lines": "a\r\nX-Evil: 1",
    "folded": "a\r\n b",
    "accent": "é",
    "nul": "\0",
    "edge": " x",
}
NOT_OF_ITEMS = {
    "Host": "evil.example.org",
    "content-length": "0",
    "Transfer-Encoding": "chunked",
    "Connection": "close",
    "Idempotency-Key": "mine",
    "Content-Type": "text/evil",
    "authorization": "Bearer evil",
    "x-site": "south",
}


def test_the_headers_of_an_item_are_headers_of_its_request_as_far_as_http_has_a_place_for_them(server, open_queue):
    queue = open_queue()
    queue.push("a", headers={**TRACE, "empty": "", "x-n": "a b", **NOT_OF_HTTP, **NOT_OF_ITEMS})
    queue.push("b")
    queue.push("c", headers={"X-Item": "c"})
    url = server.url.replace("//", "//Ann:a@")
    assert Forwarder(queue, HttpTarget(url, {"X-Site": "north"})).run().items == 3
    a, b, c = (headers for headers, _, _ in server.requests)
    assert a.keys() == {*b, *TRACE, "empty", "x-n"}
    assert (a["traceparent"], a["tracestate"], a["empty"], a["x-n"]) == (*TRACE.values(), "", "a b")
    unlike = {"Content-Length", "Idempotency-Key"}
    assert {name: a[name] for name in b.keys() - unlike} == {name: b[name] for name in b.keys() - unlike}
    assert (c["X-Item"], c.keys() - b.keys()) == ("c", {"X-Item"})
    assert [json.loads(body) for body in server.taken] == ["a", "b", "c"]


def test_a_batch_has_headers_where_its_body_has_a_place_for_them(server, open_queue):
    queue = open_queue()
    before = time.time()
    headers = {**TRACE, **NOT_OF_HTTP}
    queue.push("a", headers=headers)
    queue.push("b")
    seen = []

    def encode(items, envelopes):
        seen.extend(envelopes)
        return json.dumps([items, [each.seq for each in envelopes]]).encode()

    readers = [queue.reader(name) for name in "abc"]
    in_body = {"encode": as_json_with_headers}
    for reader, options in zip(
        readers, ({**in_body, "batch": 2}, {"encode": encode, "batch": 2}, in_body), strict=True
    ):
        assert Forwarder(reader, HttpTarget(server.url, **options)).run().items == 2
    first, second, *each = map(json.loads, server.taken)
    assert [(item["seq"], item["headers"], item["item"]) for item in first] == [(0, headers, "a"), (1, {}, "b")]
    assert all(before - 1 <= item["pushed_at"] <= time.time() for item in first)
    assert (second, [envelope.headers for envelope in seen]) == ([["a", "b"], [0, 1]], [headers, {}])
    assert each == first
    assert [TRACE["traceparent"] == found.get("traceparent") for found, _, _ in server.requests] == [
        False,
        False,
        True,
        False,
    ]
    assert server.requests[0][0]["Content-Type"] == "application/json"
    with pytest.raises(TypeError, match="an item and its envelope"):
        HttpTarget(server.url, encode=lambda: b"")


def test_bytes_go_as_they_are(server, open_queue):
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"\x80\x81", b""])
    url = server.url.replace("//", "//Ann:a%40b@")
    Forwarder(queue, HttpTarget(url, {"Content-Type": "x/y"}, as_bytes, loads=bytes)).run()
    assert server.taken == [b"\x80\x81", b""]
    assert server.requests[0][0]["Content-Type"] == "x/y"
    assert base64.b64decode(server.requests[0][0]["Authorization"].removeprefix("Basic ")) == b"Ann:a@b"


@pytest.mark.parametrize("url", ["ftp://x", "http://", "x"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="a URL must begin with"):
        HttpTarget(url)
    with pytest.raises(ValueError, match="'batch' must be a number of items, 1 or more"):
        HttpTarget("http://x", batch=0)


HOSTS = ["a b", "a..b", ".a", "a" * 64 + ".example", "a\x7f", "\u3002", "\ud800"]  # that no resolver takes


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_cannot_be_looked_up_is_refused_before_a_forwarder_runs(host):
    for make in (lambda: HttpTarget(f"https://{host}/"), lambda: MqttTarget(host, topic="x")):
        with pytest.raises(ValueError, match="'host' must be the name or address of a host"):
            make()


@pytest.mark.parametrize(
    ("timeout", "error"), [(-1, ValueError), (0, ValueError), (1e30, ValueError), (None, TypeError), ("1", TypeError)]
)
def test_a_timeout_that_no_socket_takes_is_refused(timeout, error):
    for make in (HttpTarget, partial(MqttTarget, topic="x")):
        with pytest.raises(error, match="'timeout' must be a positive number of seconds"):
            make("http://x" if make is HttpTarget else "x", timeout=timeout)


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_an_ipv6_address_without_a_port_is_not_taken_for_one_with_a_port(scheme, port):
    connection = HttpTarget(f"{scheme}://[::1]/")._connection
    assert (connection.host, connection.port) == ("::1", port)


@pytest.mark.parametrize("path", ["/é", "/a b", "/?q=é", "/?a\x7fb"])
def test_what_no_request_can_ask_for_is_refused(path):
    with pytest.raises(ValueError, match="the path of a URL must be printable ASCII"):
        HttpTarget(f"http://x{path}")


@pytest.mark.parametrize(("name", "value"), [("a name", "x"), ("", "x"), ("X", "é"), ("X", "a\r\nY: b"), ("X", " x")])
def test_a_header_that_http_cannot_carry_is_refused_before_anything_is_sent(name, value):
    with pytest.raises(ValueError, match="HTTP cannot carry the header"):
        HttpTarget("http://x", {name: value})


# --- what an answer means


@pytest.mark.parametrize(
    "answer",
    [
        "hang up",
        "nonsense",
        "silence",
        answered(500),
        answered(502, "x" * 200_000),
        answered(503),
        answered(301, Location="/elsewhere"),
        *map(answered, (401, 407, 408, 421, 425, 429)),
    ],
)
def test_what_speaks_of_the_server_is_tried_again(server, open_queue, answer):
    queue = open_queue()
    queue.push(["a", "b"])
    server.script = [None, answer, answer]
    # a silence costs the timeout; under load any other answer may take seconds
    timeout = 1.0 if answer == "silence" else 30.0
    done = Forwarder(queue, HttpTarget(server.url, timeout=timeout), **QUICK).run()
    assert list(dict.fromkeys(server.taken)) == [b'"a"', b'"b"']  # under load one may be late, and be sent again
    assert (done.refused, len(queue), len(queue.dead)) == (0, 0, 0)
    assert done.failures >= 1


def test_a_status_counts_though_the_rest_of_the_answer_is_lost(server, open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    server.script = ["half"]
    done = Forwarder(queue, HttpTarget(server.url), **QUICK).run()
    assert (server.taken, done.failures) == ([b'"b"'], 0)


def test_a_server_that_is_not_there_is_away(open_queue, server, caplog):
    queue = open_queue()
    queue.push("a")
    server.server_close()
    forwarder = Forwarder(
        queue, HttpTarget(server.url), progress=lambda now: now.failures < 3 or forwarder.stop(), **QUICK
    )
    assert forwarder.run().away_since is not None
    assert "ConnectionRefusedError" in caplog.text
    assert len(queue) == 1


@pytest.mark.parametrize("how", ["1", "date"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_wants_to_be_left_alone_is(server, open_queue, status, how):
    queue = open_queue()
    queue.push("a")
    after = formatdate(time.time() + 2, usegmt=True) if how == "date" else how
    server.script = [answered(status, Retry_After=after)]
    before = time.monotonic()
    Forwarder(queue, HttpTarget(server.url), **QUICK).run()
    assert time.monotonic() - before >= 0.9
    assert len(server.requests) == 2


def test_nonsense_in_retry_after_is_none(server, open_queue):
    queue = open_queue()
    queue.push("a")
    server.script = [answered(503, Retry_After="soon"), answered(503, Retry_After="-1")]
    Forwarder(queue, HttpTarget(server.url), **QUICK).run()
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 410, 413, 422])
def test_an_item_that_is_refused_is_a_dead_letter_with_the_answer_and_the_others_go_on(server, open_queue, status):
    queue = open_queue()
    queue.push(["a", "bad", "c"])
    server.judge = lambda body: answered(status, "no\n such  thing") if body == b'"bad"' else None
    done = Forwarder(queue, HttpTarget(server.url)).run()
    assert server.taken == [b'"a"', b'"c"']
    assert (done.items, done.refused, done.failures) == (2, 1, 0)
    (letter,) = queue.dead
    assert (letter.seq, letter.item, letter.reason) == (1, "bad", f"{status} no such thing")
    queue.dead.requeue()
    server.judge = lambda _: None
    assert Forwarder(queue, HttpTarget(server.url)).run().items == 1
    assert server.taken[-1] == b'"bad"'


def test_what_cannot_be_encoded_or_read_is_refused(server, open_queue):
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([pickle.dumps({1, 2}), b"rotten", b"1", pickle.dumps(b"x")])
    done = Forwarder(queue, HttpTarget(server.url, batch=4)).run()
    assert (server.taken, done.refused) == ([b"[1]"], 3)
    assert "not JSON serializable" in next(iter(queue.dead)).reason


@pytest.mark.parametrize("batch", [1, 4])
def test_an_item_for_which_encode_returns_no_bytes_is_refused_and_nothing_is_sent_in_its_place(
    server, open_queue, batch
):
    def encode(item):
        return {"none": None, "number": 5}.get(item, json.dumps(item, ensure_ascii=False))

    def encode_all(items):
        return None if {"none", "number"} & {*items} else json.dumps(items, ensure_ascii=False)

    queue = open_queue()
    queue.push(["none", "é", "number", "b"])
    done = Forwarder(queue, HttpTarget(server.url, encode=encode if batch == 1 else encode_all, batch=batch)).run()
    sent = [json.loads(body.decode()) for body in server.taken]
    assert (sent, done.items, done.refused) == (["é", "b"] if batch == 1 else [["é"], ["b"]], 2, 2)
    assert [(letter.seq, letter.item) for letter in queue.dead] == [(0, "none"), (2, "number")]
    assert "TypeError: encode returned NoneType, neither bytes nor str" in next(iter(queue.dead)).reason


def test_a_stop_iteration_of_loads_ends_no_batch_early(server, open_queue):
    """What stands behind that item would count as sent."""

    def loads(payload):
        if payload == b"2":
            raise StopIteration
        return json.loads(payload)

    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"1", b"2", b"3", b"4"])
    done = Forwarder(queue, HttpTarget(server.url, batch=4, loads=loads)).run()
    assert [number for body in server.taken for number in json.loads(body)] == [1, 3, 4]
    assert [letter.seq for letter in queue.dead] == [1]
    assert (done.items, done.refused) == (3, 1)


def test_what_is_raised_once_amid_the_encoding_is_no_fault_of_the_item(server, open_queue):
    """By the handler of a signal, or for want of memory."""
    raised = []

    def loads(payload):
        if not raised:
            raised.append(1)
            raise MemoryError
        return json.loads(payload)

    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"1", b"2"])
    with pytest.raises(MemoryError):
        Forwarder(queue, HttpTarget(server.url, loads=loads)).run()
    assert not server.taken
    assert (queue.count(), len(queue.dead)) == (2, 0)
    assert Forwarder(queue, HttpTarget(server.url, loads=loads)).run().items == 2


@pytest.mark.parametrize("status", [413, 400])
def test_a_batch_that_is_refused_is_split_until_the_one_is_found(server, open_queue, status):
    queue = open_queue()
    queue.push(list(range(20)))
    server.judge = lambda body: answered(status, "bad") if b"13" in body else None
    Forwarder(queue, HttpTarget(server.url, batch=10)).run()
    taken = [number for body in server.taken for number in json.loads(body)]
    assert taken == [number for number in range(20) if number != 13]
    assert [letter.item for letter in queue.dead] == [13]
    assert len(queue) == 0


def test_a_server_that_takes_small_bodies_only_gets_small_bodies(server, open_queue):
    queue = open_queue()
    queue.push(["x" * 30] * 16)
    server.judge = lambda body: answered(413) if len(body) > 100 else None
    done = Forwarder(queue, HttpTarget(server.url, batch=16)).run()
    assert (len(server.taken), done.refused) == (8, 0)


def test_what_was_taken_of_a_split_batch_is_not_sent_again(server, open_queue):
    queue = open_queue()
    queue.push([0, 1, 2, 3])
    server.script = [answered(413), None, answered(500)]
    Forwarder(queue, HttpTarget(server.url, batch=4), **QUICK).run()
    assert server.taken == [b"[0,1]", b"[2,3]"]


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again(server, open_queue):
    queue = open_queue()
    queue.push([0, 1, 2])
    server.judge = lambda _: answered(200, Close="soon")
    done = Forwarder(queue, HttpTarget(server.url)).run()
    assert (server.taken, done.failures) == ([b"0", b"1", b"2"], 0)


def test_the_command_posts_and_tells_what_was_refused(server, open_queue):
    queue = open_queue()
    queue.push([1, {"a": 2}, "bad"])
    server.judge = lambda body: answered(422, "no") if b"bad" in body else None
    command = [sys.executable, "-m", "lmdbqueue", "forward", queue._engine.path]

    def run(*arguments):
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)

    done = run(server.url, "--header", "X-Site: north", "--batch", "1")
    assert done.stdout.endswith("2 items in 2 batches; failures of the target: 0; refused, now dead letters: 1\n")
    assert server.taken == [b"1", b'{"a":2}']
    assert server.requests[0][0]["X-Site"] == "north"
    queue.push("with", headers=TRACE)
    assert run(server.url, "--with-headers").returncode == 0
    assert json.loads(server.taken[-1])["headers"] == TRACE
    assert server.requests[-1][0]["traceparent"] == TRACE["traceparent"]
    assert run(server.url, "--with-headers", "--bytes").returncode == 2
    queue.push(b"whole")
    assert run(server.url, "--bytes").returncode == 0
    assert pickle.loads(server.taken[-1]) == b"whole"
    for wrong in ("http://", "https:///x"):
        assert run(wrong).returncode == 2
    assert run(server.url, "--header", "nothing").returncode == 2
    assert run(server.url, "--name", "jobs").returncode == 4


# --- refusals of any target


class Picky(Target):
    """Takes nothing that is odd; keeps marks, or not."""

    def __init__(self, *, keeps):
        self.keeps, self.mark, self.items = keeps, None, []

    def last(self, _origin):
        return self.mark

    def store(self, batch):
        odd = {seq: "odd" for seq, payload in zip(batch.mark.seqs, batch.payloads, strict=True) if int(payload) % 2}
        if odd:
            raise RefusedError(odd)
        self.items += map(int, batch.payloads)
        if self.keeps:
            assert batch.mark.number == (self.mark.number if self.mark else 0) + 1
            self.mark = batch.mark

    def close(self):
        pass


@pytest.mark.parametrize("keeps", [True, False])
def test_a_target_of_your_own_refuses_items(open_queue, keeps):
    queue = open_queue(dumps=lambda item: b"%d" % item, loads=int)
    queue.push(list(range(25)))
    done = Forwarder(queue, Picky(keeps=keeps), batch=10).run()
    assert done[:2] == (13, 2)
    assert done.refused == 12
    assert [letter.item for letter in queue.dead] == list(range(1, 25, 2))
    assert {letter.reason for letter in queue.dead} == {"odd"}


def test_only_what_was_refused_is_dead_whatever_came_back_before_it(open_queue):
    queue = open_queue(dumps=lambda item: b"%d" % item, loads=int)
    queue.push(list(range(8)))
    held = queue.lease(3)
    target = Picky(keeps=False)
    store = target.store

    def meanwhile(batch):
        if held:
            held.nack()
        store(batch)

    target.store = meanwhile
    Forwarder(queue, target, batch=2).run()
    assert sorted(target.items) == [0, 2, 4, 6]
    assert sorted(letter.item for letter in queue.dead) == [1, 3, 5, 7]


def test_what_left_before_it_was_refused_is_no_dead_letter_and_not_counted(open_queue, caplog):
    queue = open_queue(dumps=lambda item: b"%d" % item, loads=int)
    queue.push(list(range(4)))
    target = Picky(keeps=False)
    store = target.store

    def meanwhile(batch):
        queue.delete_item(1)
        store(batch)

    target.store = meanwhile
    done = Forwarder(queue, target).run()
    assert (target.items, [letter.item for letter in queue.dead], done.refused) == ([0, 2], [3], 1)
    assert "refused items: 2; new dead letters: 1; item 1: odd" in caplog.text


def _forward_to(queue, answers, **options):
    """Forward to a target that raises each of these errors in turn, and then takes everything."""
    target = Picky(keeps=False)
    left = iter(answers)

    def store(_batch):
        for error in left:
            raise error

    target.store = store
    return Forwarder(queue, target, **options).run()


def _pauses(caplog):
    return [record.args[2] for record in caplog.records if "next try in" in record.msg]


def test_a_target_that_wants_the_next_attempt_at_once_still_gets_a_pause(open_queue, caplog):
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push(b"a")
    done = _forward_to(queue, [AwayError("busy", retry_after=0.0), AwayError("busy", retry_after=-1.0)], **QUICK)
    assert done.items == 1
    assert _pauses(caplog) == [QUICK["pause"]] * 2


def test_attempts_after_the_pause_that_a_target_asked_for_do_not_lengthen_the_pauses_of_others(open_queue, caplog):
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push(b"a")
    _forward_to(queue, [AwayError("busy", retry_after=0.001)] * 5 + [AwayError("broken")])
    assert _pauses(caplog) == [0.001] * 5 + [0.1]


def test_a_target_that_took_a_part_of_a_batch_was_back(open_queue, caplog):
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"a", b"b", b"c"])
    told = []
    errors = [AwayError("down"), AwayError("down", stored=[0]), AwayError("down", refused={1: "odd"})]
    done = _forward_to(queue, errors, progress=lambda now: told.append(now.away_since is None), **QUICK)
    assert (done.items, done.refused, done.failures) == (2, 1, 3)
    assert caplog.text.count("is back after") == 3
    assert told[0] is False
    assert told[-1] is True


def test_a_reader_passes_what_is_refused_and_it_is_dead_in_a_queue_of_its_own(open_queue, tmp_path):
    queue = open_queue(dumps=lambda item: b"%d" % item, loads=int)
    queue.push_many(range(6), headers={"a": "1"})
    queue.reader("other")
    target = Picky(keeps=True)
    Forwarder(queue.reader("central"), target, batch=4).run()
    assert target.items == [0, 2, 4]
    assert (len(queue), queue.reader("central").position, len(queue.dead)) == (6, 6, 0)
    aside = PersistentQueue("queue", tmp_path, name="queue-central-refused", dumps=bytes, loads=int)
    assert [(letter.item, letter.reason) for letter in aside.dead] == [(n, f"item {n}: odd") for n in (1, 3, 5)]
    assert [letter.headers for letter in aside.dead] == [{"a": "1"}] * 3
    aside.close()


@pytest.mark.parametrize("wrong", [RefusedError({}), RefusedError({7: "odd"}), RefusedError({}, [2, 8])])
def test_a_target_that_refuses_nothing_of_a_batch_is_left_alone_for_a_while(open_queue, wrong, caplog):
    queue = open_queue(dumps=lambda item: b"%d" % item, loads=int)
    queue.push(list(range(8)))
    target, calls = Picky(keeps=False), []

    def store(batch):
        calls.append(batch)
        if len(calls) > 50:
            forwarder.stop()
        raise wrong

    target.store = store
    told = []

    def progress(now):
        told.append(now)
        if now.failures == 3:
            forwarder.stop()

    forwarder = Forwarder(queue, target, batch=4, progress=progress, **QUICK)
    done = forwarder.run()
    assert (len(calls), done.failures, done.items, done.refused) == (3, 3, 0, 0)
    assert done.away_since is not None
    assert "it refused no item of the batch" in caplog.text
    assert "back" not in caplog.text
    assert (len(queue), len(queue.dead)) == (8, 0)


def test_a_source_without_dead_letters_says_so():
    target = Picky(keeps=False)
    with pytest.raises(RefusedError) as caught:
        target.store(Batch(Origin("", ""), Mark(1, [0], 1, 1), [b"1"]))
    assert (caught.value.refused, caught.value.stored) == ({0: "odd"}, ())


# --- kills


def _account(server, place, items, kills, record_property):
    with PersistentQueue("spool", place) as queue:
        queue.push(list(range(items)))
    bad = set(random.sample(range(items), items // 50))
    seen = []
    moments = sorted(random.sample(range(items), kills))
    failures = 0

    def judge(body):
        nonlocal failures
        number = json.loads(body)
        if number in bad:
            return answered(422, "bad")
        chance = random.random()  # noqa: S311
        if chance < 0.01:
            failures += 1
            return random.choice(["hang up", answered(500), answered(503)])  # noqa: S311
        after = chance > 0.5
        if after:
            seen.append(number)
        if moments and number >= moments[0]:
            moments.pop(0)
            os.kill(pid, signal.SIGKILL)
        if not after:
            seen.append(number)
        return None

    server.judge = judge
    path = os.path.join(place, "spool")
    killed = 0
    while True:
        gate_r, gate_w = os.pipe()

        def child(gate=gate_r):
            os.read(gate, 1)  # until the server knows whom to kill
            Forwarder(path, HttpTarget(server.url), **QUICK).run()

        pid = forked(child)
        os.write(gate_w, b"x")
        status = status_of(pid, 300)
        os.close(gate_r)
        os.close(gate_w)
        if status == 0:
            break
        assert status == KILLED
        killed += 1
    assert killed == kills
    expected = [number for number in range(items) if number not in bad]
    assert list(dict.fromkeys(seen)) == expected, "lost, or out of order"
    assert len(seen) - len(expected) <= killed + failures
    with PersistentQueue("spool", place) as queue:
        assert len(queue) == 0
        assert {letter.item for letter in queue.dead} == bad
        assert {letter.reason for letter in queue.dead} == {"422 bad"}
        assert queue.check() == []
    record_property("kills", killed)


def test_a_sender_that_is_killed_loses_none_and_keeps_the_order(server, tmp_path, record_property):
    _account(server, tmp_path, 600, 12, record_property)


@pytest.mark.long
def test_a_sender_is_killed_fifty_times_in_20_000_items(server, tmp_path, record_property):
    _account(server, tmp_path, 20_000, 50, record_property)


@pytest.mark.parametrize(
    ("after", "seconds"),
    [("5", 5.0), ("²", None), ("soon", None), ("9" * 400, 3600.0), ("Mon, 01 Jan 0001 00:00:00 -0000", 0.0)],
)
def test_whatever_retry_after_contains_the_forwarder_continues(after, seconds):
    assert _http._seconds(after) == seconds


def test_a_url_that_is_refused_is_told_without_its_password():
    with pytest.raises(ValueError, match="must begin with") as caught:
        HttpTarget("htp://me:secret@host/")
    assert "secret" not in str(caught.value)
