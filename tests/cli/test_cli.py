"""The command line, as processes: what is printed, what is removed, how each ends, and what is refused."""

import base64
import json
import os
import pickle
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress

import click
import pytest
from litequeue import LiteQueue
from processes import DEADLINE, eventually
from queuelib import FifoDiskQueue

import lmdbqueue
from lmdbqueue import OptionError
from lmdbqueue.cli import _care, _items, _lines, _watch
from lmdbqueue.cli._command import commands
from lmdbqueue.cli._screen import _duration

REGISTERED = _care, _items, _lines, _watch
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(lmdbqueue.__file__)))
COMMAND = [sys.executable, "-m", "lmdbqueue"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT, "COLUMNS": "80", "TERM": "xterm"}
NO_QUEUE, UNTRUSTED, FULL, UNREADABLE, BROKEN_PIPE = 4, 5, 6, 7, 141


_NURSERY = """
import os, pickle, sys
from lmdbqueue.cli import _care, _forward, _items, _lines, _watch, main
while True:
    arguments, place, files = pickle.load(sys.stdin.buffer)
    pid = os.fork()
    if not pid:
        break
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    sys.stdout.buffer.write(pickle.dumps(code))
    sys.stdout.buffer.flush()
os.chdir(place)
for fd, (name, mode) in enumerate(zip(files, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY))):
    os.dup2(os.open(name, mode), fd)
sys.stdin = open(0)
main(arguments)
"""


@pytest.fixture(scope="module")
def nursery():
    """A process that has imported the command line, and forks one that runs a command, which takes less time."""
    with subprocess.Popen(
        [sys.executable, "-c", _NURSERY], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def run(tmp_path, tmp_path_factory, nursery):
    """Run one command beside the queues, to its end."""
    streams = tmp_path_factory.mktemp("streams")
    files = [str(streams / name) for name in ("stdin", "stdout", "stderr")]

    def run_(*arguments, stdin=b"", code=0, **options):
        if options:  # of a process of its own
            command = [*COMMAND, *arguments]
            here = {"cwd": tmp_path, "env": ENVIRONMENT, "timeout": DEADLINE, "capture_output": True}
            result = subprocess.run(command, input=stdin, check=False, **here, **options)
        else:
            for name, content in zip(files, (stdin, b"", b""), strict=True):
                with open(name, "wb") as file:
                    file.write(content)
            nursery.stdin.write(pickle.dumps(([str(each) for each in arguments], str(tmp_path), files)))
            nursery.stdin.flush()
            assert select.select([nursery.stdout], [], [], DEADLINE)[0], "it does not end"
            ended = pickle.load(nursery.stdout)
            result = subprocess.CompletedProcess(arguments, ended, *map(_content, files[1:]))
        assert result.returncode == code, result.stderr.decode()
        if code not in (0, 1, 3):
            assert result.stderr.count(b"\n") == 1, result.stderr.decode()
            assert b"Traceback" not in result.stderr
        return result

    return run_


def _content(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture
def begin(tmp_path):
    """Begin a command, and end it with the test if it has not ended."""
    begun = []

    def begin_(*arguments, **options):
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, env=ENVIRONMENT, bufsize=0, **options)
        begun.append(process)
        return process

    yield begin_
    for process in begun:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def read_line(process):
    """Return the next line that a process prints; it must come."""
    assert select.select([process.stdout], [], [], DEADLINE)[0]
    return process.stdout.readline().rstrip(b"\n")


# --- push


def test_arguments_are_items_in_their_order(run, open_queue):
    assert run("push", "queue", "a", "b").stdout == b"pushed items 0 to 1\n"
    assert run("push", "queue", "c").stdout == b"pushed item 2\n"
    assert list(open_queue()) == ["a", "b", "c"]


def test_lines_of_a_pipe_are_stored_before_it_ends(begin, open_queue):
    process = begin("push", "queue", stdin=subprocess.PIPE)
    process.stdin.write(b"first\nseco")
    process.stdin.flush()
    queue = open_queue()
    eventually(lambda: list(queue) == ["first"])
    process.stdin.write(b"nd\n\nlast")
    process.stdin.close()
    assert process.wait(DEADLINE) == 0
    assert list(queue) == ["first", "second", "", "last"]


def test_json_is_stored_as_a_json_text(run, open_queue):
    run("push", "queue", "--json", '{"a": [1, "\u00e9"]}', "null")
    assert list(open_queue(loads=json.loads)) == [{"a": [1, "\u00e9"]}, None]


@pytest.mark.parametrize("name", ["pickle", "json", "msgpack", "bytes"])
def test_what_is_pushed_and_printed_is_what_the_queues_serializer_reads(run, open_queue, name):
    queue = open_queue(serializer=name)
    run("push", "queue", "--json", '{"a": [1, "\u00e9"]}')
    run("push", "queue", "text")
    items = [{"a": [1, "\u00e9"]}, "text"] if name != "bytes" else ['{"a": [1, "\u00e9"]}'.encode(), b"text"]
    assert list(queue) == items
    texts = ["{'a': [1, '\u00e9']}", "text"] if name != "bytes" else ['{"a": [1, "\u00e9"]}', "text"]
    assert run("peek", "queue", "-n", "2").stdout.decode().splitlines() == texts
    assert json.loads(run("peek", "queue", "--json").stdout) == {"a": [1, "\u00e9"]}
    lines = b'{"item": {"b": 2}}\n' if name != "bytes" else b'{"payload": "eA=="}\n'
    run("import", "-", "queue", stdin=lines)
    assert list(queue)[2] == ({"b": 2} if name != "bytes" else b"x")


@pytest.mark.parametrize(("form", "name"), [([], "pickle"), (["--json"], "json"), (["--bytes"], "bytes")])
def test_a_queue_that_push_makes_has_the_serializer_of_the_form(run, open_queue, form, name):
    run("push", "queue", *form, "1")
    assert open_queue(serializer=name).peek() == {"pickle": "1", "json": 1, "bytes": b"1"}[name]
    with pytest.raises(OptionError):
        open_queue(serializer="msgpack")


def test_bytes_are_stored_as_they_are(run, open_queue):
    run("push", "queue", "--bytes", stdin=bytes(range(256)))
    assert list(open_queue(loads=bytes)) == bytes(range(256)).split(b"\n")


def test_delay_and_unique_are_those_of_the_library(run, open_queue):
    run("push", "queue", "later", "--delay", "3600")
    assert run("push", "queue", "one", "--unique", "k").stdout == b"pushed item 1\n"
    assert run("push", "queue", "two", "--unique", "k").stdout == b"not pushed: item 1 has the key\n"
    queue = open_queue()
    assert (list(queue), queue.stats().delayed) == (["one"], 1)
    run("push", "texts", "--json", "[1, 2]", "--unique", "k")
    assert list(open_queue("texts", loads=json.loads)) == [[1, 2]]
    run("push", "queue", "a", "b", "--unique", "k", code=2)


def test_headers_expiry_priority_and_replacing_are_those_of_the_library(run, open_queue):
    run("push", "queue", "one", "--header", "a: b", "--header", "c:d:e")
    run("push", "queue", "two", "--priority", "-1", "--expires", "0.001")
    run("push", "queue", "three", "--unique", "k", "--delay", "3600")
    run("push", "queue", "four", "--unique", "k", "--replace")
    queue = open_queue()
    eventually(lambda: queue.peek_many(9) == ["one", "four"])
    assert queue.stats().expired == 1
    lines = b'{"a": "b", "c": "d:e"}\tone\n{}\tfour\n'
    assert run("peek", "queue", "--headers", "-n", "9").stdout == lines
    line = json.loads(run("peek", "queue", "--headers", "--json").stdout)
    assert line == {"headers": {"a": "b", "c": "d:e"}, "item": "one"}
    urgent = queue.push("urgent", priority=-1)
    queue.dead_letter(urgent)
    assert run("dead", "requeue", "queue", "--", str(urgent)).stdout == b"requeued 1 item\n"
    for wrong in (["--replace"], ["--header", "a"], ["--expires", "1", "--delay", "2"], ["--priority", "128"]):
        run("push", "queue", "a", *wrong, code=2)


@pytest.mark.parametrize(("options", "bad"), [(["--json"], b"{oops"), ([], b"\xff")])
def test_a_line_that_is_no_item_is_named_and_those_before_it_are_stored(begin, open_queue, options, bad):
    process = begin("push", "queue", *options, stdin=subprocess.PIPE)
    process.stdin.write(b"1\n2\n")
    process.stdin.flush()
    queue = open_queue(loads=bytes)
    eventually(lambda: len(queue) == 2)
    _, errors = process.communicate(b"3\n" + bad + b"\n5\n", timeout=DEADLINE)
    assert process.returncode == 1
    assert b"line 4 is not " in errors
    assert b"the 2 lines before are stored" in errors
    assert len(queue) == 2


def test_a_full_disk_is_told_with_how_much_is_stored(run, open_queue):
    open_queue().push("first")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))

    lines = b"".join(b"%0999d\n" % number for number in range(20_000))
    result = run("push", "queue", stdin=lines, code=FULL, preexec_fn=limit)
    stored = int(result.stderr.split(b"; the ")[1].split(b" lines before")[0].replace(b",", b""))
    assert list(open_queue())[1:] == lines.decode().splitlines()[:stored]


# --- peek, pop, delete


def test_peek_leaves_what_it_prints(run, queue):
    queue.push(["a", 1, {"b": None}, b"\xff", "\u2603"])
    printed = "a\n1\n{'b': None}\nb'\\xff'\n\u2603\n".encode()
    assert run("peek", "queue", "-n", "9").stdout == printed
    assert len(queue) == 5


def test_pop_removes_what_it_prints_and_no_more(run, queue):
    queue.push(list(range(2_500)))
    assert run("pop", "queue").stdout == b"0\n"
    assert run("pop", "queue", "-n", "2000").stdout.split() == [b"%d" % number for number in range(1, 2001)]
    assert list(queue) == list(range(2001, 2500))


def test_json_is_printed_of_pickles_and_of_json_texts(run, open_queue):
    open_queue("pickles").push([{"a": "\u2603\n"}, None, [1.5, "b"]])
    run("push", "texts", "--json", '{"a": "\u2603\\n"}', "null", '[1.5, "b"]')
    for name in ("pickles", "texts"):
        lines = run("pop", name, "-n", "3", "--json").stdout.splitlines()
        assert list(map(json.loads, lines)) == [{"a": "\u2603\n"}, None, [1.5, "b"]]


def test_bytes_are_printed_as_they_are_and_raw_as_python_writes_them(run, open_queue):
    open_queue(dumps=bytes, loads=bytes).push([b"a\0\xff", b"b"])
    assert run("peek", "queue", "-n", "2", "--bytes").stdout == b"a\0\xff\nb\n"
    assert run("peek", "queue", "-n", "2", "--raw").stdout == b"b'a\\x00\\xff'\nb'b'\n"


def test_what_cannot_be_decoded_stays_where_it_is(run, queue, open_queue):
    queue.push(["a", {1, 2}, "c"])
    done = run("pop", "queue", "-n", "3", "--json", code=UNREADABLE)
    assert (done.stdout, b"item 1 " in done.stderr) == (b'"a"\n', True)
    assert (list(queue), len(queue.dead)) == ([{1, 2}, "c"], 0)
    open_queue("other", dumps=bytes).push(b"no pickle")
    assert b"--bytes" in run("pop", "other", code=UNREADABLE).stderr


def test_an_exit_code_says_that_nothing_was_there(run, queue):
    for command in (["pop"], ["peek"], ["delete"], ["dead", "requeue", "--all"], ["dead", "delete", "7"]):
        run(*command[:2], "queue", *command[2:], code=3) if command[0] == "dead" else run(*command, "queue", code=3)
    assert len(queue) == 0


def test_delete_removes_without_looking(run, open_queue):
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"no pickle"] * 5)
    assert run("delete", "queue", "-n", "4").stdout == b"deleted 4 items\n"
    assert len(queue) == 1


def test_what_a_broken_pipe_keeps_from_its_reader_is_in_its_place_again(begin, queue):
    queue.push(["x" * 1000] * 3_000)  # a thousand of them are more than a pipe holds
    process = begin("pop", "queue", "-n", "3000")
    assert read_line(process) == b"x" * 1000
    process.stdout.close()
    assert process.wait(DEADLINE) == BROKEN_PIPE
    assert process.stderr.read() == b""
    assert len(queue) == 3_000


def test_what_stands_before_an_item_that_cannot_be_decoded_is_printed_and_then_it_is_an_error(run, open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    queue._engine.append([b"\x80bad"])
    queue.push("c")
    for command in (("peek", "queue", "-n", "9"), ("pop", "queue", "-n", "9")):
        told = run(*command, code=7)
        assert told.stdout == b"a\nb\n"
        assert b"lmdbqueue delete --item 2 removes it" in told.stderr
    assert run("pop", "queue", "-n", "9", code=7).stdout == b""
    assert (len(queue), queue.stats().leased) == (2, 0)
    run("delete", "queue", "--item", "2", "-n", "2", code=2)
    assert run("delete", "queue", "--item", "2", "--item", "99").stdout == b"deleted 1 item\n"
    run("delete", "queue", "--item", "2", code=3)
    assert run("pop", "queue", "-n", "9").stdout == b"c\n"


def test_what_a_killed_pop_has_not_printed_is_in_its_place_again(begin, queue):
    queue.push(["x" * 1000] * 3_000)
    process = begin("pop", "queue", "-n", "3000")
    read_line(process)
    assert len(queue) == 2_000  # while the reader may still take them
    process.kill()
    process.wait()
    assert len(queue) == 3_000


@pytest.mark.parametrize("command", [["peek", "-n", "100000"], ["export"]], ids=" ".join)
def test_a_broken_pipe_is_silent(begin, queue, command):
    queue.push(["x" * 1000] * 3_000)
    process = begin(command[0], "queue", *command[1:])
    read_line(process)
    process.stdout.close()
    assert (process.wait(DEADLINE), process.stderr.read()) == (BROKEN_PIPE, b"")


# --- follow


def test_follow_prints_what_waits_and_what_comes_and_removes_nothing(begin, queue):
    queue.push(["a", "b"])
    process = begin("follow", "queue")
    assert [read_line(process), read_line(process)] == [b"a", b"b"]
    delays = []
    for number in range(5):
        begun = time.monotonic()
        queue.push(number)
        assert read_line(process) == b"%d" % number
        delays.append(time.monotonic() - begun)
    assert min(delays) < 0.25  # woken, and not by the next look a second later
    assert len(queue) == 7
    process.send_signal(signal.SIGINT)
    assert (process.wait(DEADLINE), process.stderr.read()) == (0, b"")


def test_follow_of_new_items_leaves_out_those_that_wait(begin, queue):
    queue.push("old")
    process = begin("follow", "queue", "--new", "-n", "1")
    eventually(lambda: queue.stats().processes == 2)  # it has opened the queue ...
    for _ in range(100):  # ... and looks at its tail at once
        queue.push("new")
        if select.select([process.stdout], [], [], 0.05)[0]:
            break
    assert read_line(process) == b"new"
    assert process.wait(DEADLINE) == 0


def test_follow_goes_on_past_what_cannot_be_read_if_it_is_told_to(run, open_queue):
    queue = open_queue(dumps=bytes)
    queue.push([pickle.dumps("a"), b"no pickle", pickle.dumps("b")])
    told = run("follow", "queue", code=UNREADABLE)
    assert (told.stdout, b"item 1 " in told.stderr) == (b"a\n", True)
    told = run("follow", "queue", "--on-error", "skip", "-n", "2")
    assert (told.stdout, b"left out: item 1 " in told.stderr) == (b"a\nb\n", True)


def test_follow_ends_with_its_reader_though_nothing_comes(begin, queue):
    queue.push("a")
    process = begin("follow", "queue")
    read_line(process)
    process.stdout.close()
    assert (process.wait(DEADLINE), process.stderr.read()) == (BROKEN_PIPE, b"")


# --- dead letters


def bury(queue, items):
    queue.max_attempts = 1
    queue.push(items)
    queue.lease(len(items)).nack(reason="Error:\nboom")


def test_dead_letters_are_listed_requeued_and_deleted(run, queue):
    bury(queue, ["a\nb", "c", "d"])
    rows = [line.split("\t") for line in run("dead", "list", "queue").stdout.decode().splitlines()]
    assert [(row[0], row[1], row[3], row[4]) for row in rows] == [
        ("0", "1", "Error: boom", "a\\nb"),
        ("1", "1", "Error: boom", "c"),
        ("2", "1", "Error: boom", "d"),
    ]
    assert run("dead", "requeue", "queue", "1").stdout == b"requeued 1 item\n"
    assert run("dead", "delete", "queue", "--all").stdout == b"deleted 2 items\n"
    assert (list(queue), len(queue.dead)) == (["c"], 0)


def test_dead_letters_are_not_all_removed_by_leaving_out_their_numbers(run, queue):
    bury(queue, ["a"])
    for command in ("requeue", "delete"):
        run("dead", command, "queue", code=2)
        run("dead", command, "queue", "0", "--all", code=2)
    assert len(queue.dead) == 1


def test_a_dead_letter_that_cannot_be_decoded_is_listed_as_bytes(run, open_queue):
    queue = open_queue(dumps=bytes, loads=json.loads)
    queue.push(b"{oops")
    assert not queue.lease(1)
    letter = json.loads(run("dead", "list", "queue", "--json").stdout)
    assert base64.b64decode(letter["payload"]) == b"{oops"
    assert letter["reason"].startswith("it cannot be decoded: JSONDecodeError")


# --- export, import


def test_an_export_is_what_an_import_makes_the_same_queue_of(run, open_queue):
    queue = open_queue()
    items = ["a", {"b": (1, 2)}, b"\xff", None, "\n\u2603"]
    queue.push(items * 700)
    lines = run("export", "queue").stdout
    assert run("import", "-", "again", stdin=lines).stdout == b"imported 3,500 items\n"
    assert list(open_queue("again")) == items * 700 == list(queue)


@pytest.mark.parametrize("options", [{}, {"loads": json.loads}])
def test_decoded_items_are_imported_as_pickles_or_as_json(run, open_queue, tmp_path, options):
    run("push", "queue", "--json", '{"a": 1}', "[null]", '"b"')
    (tmp_path / "lines").write_bytes(run("export", "queue", "--json").stdout)
    run("import", "lines", "again", *(["--json"] if options else []))
    assert list(open_queue("again", **options)) == [{"a": 1}, [None], "b"]


def test_an_import_with_a_bad_line_imports_nothing(run, open_queue):
    lines = b'{"item": 1}\n' * 2_500
    for bad in (b'{"payload": "%%%"}\n', b"{}\n", b"[]\n", b"oops\n", b'{"item": 1\n'):
        result = run("import", "-", "queue", stdin=lines + bad, code=UNREADABLE)
        assert b"line 2,501 " in result.stderr
    assert len(open_queue()) == 0


def test_a_file_that_is_no_export_is_not_imported(run, tmp_path):
    (tmp_path / "other").write_bytes(b"\3\0\0\0\x08\0\0\0abc")
    run("import", "other", "queue", code=UNREADABLE)
    assert not os.path.exists(tmp_path / "queue")


def test_what_an_interrupted_flush_of_another_library_left_is_named(run, tmp_path):
    (tmp_path / f"old-{'0f' * 16}").touch()
    assert b"interrupted flush" in run("import", "old", "queue", code=NO_QUEUE).stderr
    assert not os.path.exists(tmp_path / "queue")


def test_a_queue_of_a_database_with_several_is_picked_by_table(run, tmp_path):
    for table in ("first", "second"):
        with closing(LiteQueue(tmp_path / "db", queue_name=table)) as queue:
            queue.put(table)
    assert run("import", "db", "queue", "--table", "second").stdout == b"litequeue: imported 1 item\n"
    assert run("peek", "queue").stdout == b"second\n"


def test_bytes_of_another_library_are_not_stored_as_json(run, tmp_path):
    with closing(FifoDiskQueue(str(tmp_path / "old"))) as queue:
        queue.push(b"x")
    assert b"as JSON" in run("import", "old", "queue", "--json", code=UNREADABLE).stderr
    assert run("queues", "queue").stdout == b"queue\t0\n"


def test_a_table_of_an_export_is_a_mistake(run, tmp_path):
    (tmp_path / "export").write_text('{"item": 1}\n')
    run("import", "export", "queue", "--table", "t", code=2)


def test_readers_are_printed_and_dropped(run, queue):
    queue.push([1, 2, 3])
    queue.reader("b")
    queue.reader("a").pop()
    assert [json.loads(each)["lag"] for each in run("readers", "queue", "--json").stdout.splitlines()] == [2, 3]
    run("readers", "queue", "--drop", "a", stdin=b"n\n", code=1)
    run("readers", "queue", "--drop", "nobody", "--yes", code=NO_QUEUE)
    assert [each.name for each in queue.readers()] == ["a", "b"]
    run("readers", "queue", "--drop", "a", "--yes")
    assert [each.name for each in queue.readers()] == ["b"]


def test_an_export_of_what_is_not_json_names_the_item(run, queue):
    queue.push([1, {2}])
    assert b"item 1 " in run("export", "queue", "--json", code=UNREADABLE).stderr


# --- nothing is made, or run, by mistake


def leaves(group=commands, before=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*before, name))
        else:
            yield (*before, name)


MAKING = {("push",), ("import",), ("demo",)}
ARGUMENTS = {("drop",): ["queue", "--yes"], ("copy",): ["elsewhere"], ("clear",): ["--yes"], ("watch",): ["--once"]} | {
    ("dead", verb): ["--all"] for verb in ("requeue", "delete")
}


@pytest.mark.parametrize("command", sorted(set(leaves()) - MAKING), ids=" ".join)
def test_a_mistyped_path_or_name_is_an_error_and_makes_nothing(run, tmp_path, open_queue, command):
    arguments = ARGUMENTS.get(command, [])
    told = run(*command, "mistyped", *arguments, code=NO_QUEUE).stderr
    assert b"there is no queue at 'mistyped'" in told or b"mistyped' is not a queue directory: it is missing" in told
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    run(*command, "other", *arguments, code=NO_QUEUE)
    assert os.listdir(tmp_path / "other") == ["file"]
    queue = open_queue()
    if command == ("drop",):
        run(*command, "queue", "mistyped", "--yes", code=NO_QUEUE)
    elif command not in {("check",), ("queues",), ("flush",), ("copy",)}:  # which are of a whole directory
        result = run(*command, "queue", *arguments, "--name", "mistyped", code=NO_QUEUE)
        assert b"'mistyped'" in result.stderr
    assert queue.queues() == ["queue"]
    assert sorted(os.listdir(tmp_path)) == ["other", "queue"]


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = os.fspath(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


DECODING = [
    ["peek"],
    ["peek", "--json"],
    ["pop"],
    ["pop", "--json"],
    ["follow", "-n", "1"],
    ["export", "--json"],
    ["dead list"],
]


def make_strange(place, how):
    if how == "directory":
        os.chown(place, 12345, 12345)
    elif how == "file":
        os.chown(place / "00000001.mdb", 12345, 12345)
    else:
        os.chmod(place, 0o770)  # noqa: S103


@pytest.mark.parametrize("how", ["directory", "file", "mode"])
@pytest.mark.parametrize("command", DECODING, ids=" ".join)
def test_nothing_is_unpickled_that_others_may_have_written(run, open_queue, tmp_path, needs, command, how):
    if how != "mode":
        needs("root")
    queue = open_queue(loads=bytes)
    bury(queue, [Bomb(tmp_path / "ran")])
    queue.push(Bomb(tmp_path / "ran"))
    make_strange(tmp_path / "queue", how)
    verb, *options = command
    code = UNREADABLE if "--json" in options else UNTRUSTED
    refused = run(*verb.split(), "queue", *options, code=code)
    assert b"--trust" in refused.stderr
    assert refused.stdout == b""
    assert not os.path.exists(tmp_path / "ran")
    if options != ["--json"]:
        assert b"mkdir" in run(*verb.split(), "queue", *options, "--raw").stdout
        assert not os.path.exists(tmp_path / "ran")
    if verb == "peek" and not options:
        run("peek", "queue", "--trust")
        assert os.path.exists(tmp_path / "ran")


@pytest.mark.parametrize("command", ["peek", "pop"])
def test_json_texts_of_others_are_printed(run, tmp_path, command):
    run("push", "queue", "--json", "[1]")
    make_strange(tmp_path / "queue", "mode")
    assert run(command, "queue", "--json").stdout == b"[1]\n"


def test_clear_and_drop_ask_first(run, open_queue):
    queue = open_queue()
    other = open_queue(name="other")
    queue.push([1, 2])
    queue.lease(1)
    for answer in (b"", b"n\n", b"\n"):
        for command in (["clear", "queue"], ["drop", "queue", "other"]):
            assert b"nothing was removed" in run(*command, stdin=answer, code=1).stderr
    assert (len(queue), queue.queues()) == (1, ["other", "queue"])
    assert b"removed 1 item\n" in run("clear", "queue", stdin=b"y\n").stdout
    assert (len(queue), queue.stats().leased) == (0, 1)
    run("clear", "queue", "--all", "--yes")
    assert queue.stats().leased == 0
    run("drop", "queue", "other", stdin=b"y\n")
    assert queue.queues() == ["queue"]
    with pytest.raises(lmdbqueue.GoneError):
        other.push(1)
    other.close()  # it cannot be checked any more


# --- root


@pytest.mark.parametrize(
    ("command", "code"),
    [("push queue a", 0), ("pop queue --trust", 0), ("stat queue", 0), ("flush queue --force", 0), ("check queue", 1)],
)
def test_what_root_makes_in_the_queue_of_another_is_that_ones(run, queue, tmp_path, needs, command, code):
    needs("root")
    queue.push([1, 2])
    queue.close()
    place = tmp_path / "queue"
    for name in ("bell", "session"):
        (place / name).unlink(missing_ok=True)
    for each in (place, *place.iterdir()):
        os.chown(each, 12345, 12346)
    (tmp_path / "mine").touch()
    (place / "linked").hardlink_to(tmp_path / "mine")  # which check finds
    run(*command.split(), code=code)
    owners = {each.name: (each.stat().st_uid, each.stat().st_gid) for each in place.iterdir()}
    assert owners.pop("linked") == (0, 0)
    assert len(owners) >= 4
    assert set(owners.values()) == {(12345, 12346)}


# --- stat


def test_stat_says_what_the_library_says(run, open_queue):
    queue = open_queue()
    bury(queue, ["a", "b"])
    queue.push(["c", "d"])
    with open_queue(name="other") as other:
        other.push(1)
        found = [json.loads(line) for line in run("stat", "queue", "--json").stdout.splitlines()]
    assert [(each.pop("path"), each.pop("queue")) for each in found] == [("queue", "other"), ("queue", "queue")]
    stats = queue.stats()
    assert 0 <= found[1].pop("oldest_age") <= stats.oldest_age
    expected = stats._asdict() | {"processes": stats.processes and stats.processes + 1}
    assert found[1] == {name: value for name, value in expected.items() if name != "oldest_age"} | {"readers": []}
    text = run("stat", "queue", "--name", "queue").stdout.decode()
    assert "\n     waiting  2\n" in text
    assert "\n        dead  2\n" in text


def test_stat_says_how_old_the_first_item_is_and_how_far_readers_are_behind(run, queue):
    assert "\n  oldest age  -\n" in run("stat", "queue").stdout.decode()
    queue.push(list(range(2000)))
    queue.reader("slow")
    queue.reader("fast").delete(1500)
    queue.delete(3)
    text = run("stat", "queue").stdout.decode()
    assert re.search(r"^  oldest age  \d[\d.]* seconds$", text, re.MULTILINE)
    assert "\n      reader  fast: 500 behind, 0 lost\n      reader  slow: 1,997 behind, 3 lost\n" in text
    (line,) = run("stat", "queue", "--json").stdout.splitlines()
    assert json.loads(line)["readers"] == [each._asdict() for each in queue.readers()]
    text = run("stat", "queue", "--prometheus").stdout.decode()
    assert re.search(r'^lmdbqueue_reader_lag{path=".*/queue",queue="queue",reader="slow"} 1997$', text, re.MULTILINE)
    assert re.search(r"^lmdbqueue_oldest_age_seconds{.*} \d[\d.]*$", text, re.MULTILINE)


def test_queues_are_listed_with_what_waits(run, open_queue):
    open_queue().push([1, 2])
    open_queue(name="a").push(1)
    assert run("queues", "queue").stdout == b"a\t1\nqueue\t2\n"


def test_a_queue_that_is_stored_with_other_options_is_opened_with_those(run, open_queue):
    open_queue(durability="off", checksum=False).push("a")
    run("push", "queue", "b")
    assert run("pop", "queue", "-n", "9").stdout == b"a\nb\n"


# --- space and copies


def test_flush_says_how_large_the_file_was_and_is(run, queue, tmp_path):
    assert b"too few are empty" in run("flush", "queue").stdout
    queue.push(["x" * 1000] * 5_000)
    queue.clear()
    before = os.path.getsize(tmp_path / "queue" / "00000001.mdb")
    result = run("flush", "queue")
    after = os.path.getsize(tmp_path / "queue" / "00000002.mdb")
    assert result.stdout.decode().splitlines() == [
        f"queue: {before:,} bytes before, {after:,} after",
        f"queue: 1 process holds the old file of {before:,} bytes until its next call or its end",
    ]
    assert after < before / 10


def test_a_copy_is_a_queue_of_its_own_and_never_overwrites(run, queue, open_queue):
    queue.push([1, 2])
    run("copy", "queue", "backup")
    assert list(open_queue("backup")) == [1, 2]
    run("copy", "queue", "backup", code=1)


def test_check_tells_what_is_wrong_and_repairs(run, queue, tmp_path):
    queue.push([b"y" * 50] * 3)
    queue.close()
    assert run("check", "queue").stdout == b"queue: whole\n"
    path = tmp_path / "queue" / "00000001.mdb"
    content = path.read_bytes()
    place = content.rindex(b"y" * 50)
    path.write_bytes(content[:place] + b"z" + content[place + 1 :])
    assert b"queue: not whole\n" in run("check", "queue", code=1).stdout
    assert b"queue: repaired\n" in run("check", "queue", "--repair", code=1).stdout
    assert run("check", "queue").stdout == b"queue: whole\n"
    assert os.path.exists(tmp_path / "queue.quarantine")


# --- on a terminal


class Terminal:
    """A terminal with a process in it."""

    def __init__(self, place, *arguments, **environment):
        self.fd, other = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=place,
            env={**ENVIRONMENT, **environment},
            stdin=other,
            stdout=other,
            stderr=other,
        )
        os.close(other)
        self.seen = b""

    def wait_for(self, text):
        eventually(lambda: self._read() or text in self.seen)

    def _read(self):
        with suppress(OSError):  # its other end is closed
            while select.select([self.fd], [], [], 0)[0] and (block := os.read(self.fd, 4096)):
                self.seen += block

    def end(self, number=None):
        """Send a signal, read to the end, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        eventually(lambda: self._read() or self.process.poll() is not None)
        self._read()
        os.close(self.fd)
        return self.process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_draws_until_it_is_ended_and_leaves_the_terminal_as_it_was(tmp_path, queue, number):
    queue.push([1, 2, 3])
    terminal = Terminal(tmp_path, "watch", "queue", "--interval", "0.05")
    terminal.wait_for(b"waiting")
    assert b"\x1b[?25l" in terminal.seen  # the cursor is hidden
    queue.push([0] * 1_231)
    terminal.wait_for(b"1,234")
    assert terminal.end(number) == 0
    assert terminal.seen.rindex(b"\x1b[?25h") > terminal.seen.rindex(b"\x1b[?25l")
    assert b"Traceback" not in terminal.seen


def test_watch_draws_one_frame_into_a_pipe(run, queue):
    queue.push([1, 2])
    for options in ([], ["--once"]):
        printed = run("watch", "queue", *options).stdout.decode()
        assert "waiting  2" in printed
        assert "\x1b" not in printed


def test_watch_shows_the_age_and_the_readers_that_are_the_furthest_behind(run, queue):
    queue.push(list(range(1200)))
    for number in range(12):
        queue.reader(f"r[{number}]").delete(100 * number)
    queue.delete(1)
    printed = run("watch", "queue").stdout.decode()
    assert re.search(r"the oldest has waited \d+ s ", printed)
    assert "reader r[0]: 1,199 behind, 1 lost" in printed
    assert "reader r[9]: 300 behind " in printed
    assert "r[10]" not in printed
    assert "and 2 readers less far behind" in printed


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "120 min"), (7_200, "2 h"), (172_800, "2 days")],
)
def test_durations_are_shown_in_the_unit_that_says_most(seconds, shown):
    assert _duration(seconds) == shown


def test_no_color_turns_colours_off(tmp_path, queue):
    bury(queue, ["a"])
    for environment, red in (({}, True), ({"NO_COLOR": "1"}, False)):
        terminal = Terminal(tmp_path, "watch", "queue", "--once", **environment)
        assert terminal.end() == 0
        assert (b"31m" in terminal.seen) == red


@pytest.mark.parametrize("command", ["import", "export", "flush"])
def test_a_bar_is_drawn_on_a_terminal(tmp_path, run, queue, command):
    queue.push(["x" * 1000] * 2_000)
    (tmp_path / "lines").write_bytes(run("export", "queue").stdout)
    arguments = {"import": ["lines", "again"], "export": ["queue"], "flush": ["queue", "--force"]}[command]
    terminal = Terminal(tmp_path, command, *arguments)
    assert terminal.end() == 0
    assert command.encode().removesuffix(b"e") + b"ing" in terminal.seen


# --- others at work


def test_a_command_that_waits_for_a_writer_says_so_and_goes_on_after_it(begin, queue):
    queue.push([1, 2])
    with queue.transaction():
        process = begin("stat", "queue")
        assert select.select([process.stderr], [], [], DEADLINE)[0]
        assert b"in the middle of a write" in process.stderr.readline()
        assert process.poll() is None
    assert process.wait(DEADLINE) == 0
    assert b"waiting  2\n" in process.stdout.read()


# --- the frame


def test_a_wrong_command_line_is_one_line_and_2(run):
    for arguments in (["dance"], ["pop"], ["pop", "queue", "-n", "many"], ["pop", "queue", "--speed"]):
        assert b"--help" in run(*arguments, code=2).stderr


def test_commands_are_completed(tmp_path):
    environment = {
        **ENVIRONMENT,
        "_LMDBQUEUE_COMPLETE": "bash_complete",
        "COMP_WORDS": "lmdbqueue pe",
        "COMP_CWORD": "1",
    }
    result = subprocess.run(COMMAND, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=DEADLINE)
    assert result.stdout == b"plain,peek\n"


@pytest.fixture
def bare(tmp_path):
    """Run a command where click is not installed."""
    program = "import sys; sys.modules['click'] = None; from lmdbqueue.cli import main; main()"

    def bare_(*arguments):
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            check=False,
            timeout=DEADLINE,
        )

    return bare_


def test_demo_and_check_work_without_the_extra(bare, queue, tmp_path):
    queue.push(1)
    queue.close()
    result = bare("check", "queue")
    assert (result.returncode, result.stdout) == (0, b"queue: whole\n")
    (tmp_path / "queue" / "stranger").touch()
    assert bare("check", "queue").returncode == 1
    result = bare("check", "nowhere")
    assert (result.returncode, result.stderr.count(b"\n")) == (4, 1)
    result = bare("demo", "--items", "200")
    assert (result.returncode, b"nothing wrong" in result.stdout) == (0, True)
    assert bare("demo", "--items", "0").returncode == 2


@pytest.mark.parametrize("place", ["nowhere", "ordinary"])
def test_what_is_no_queue_is_called_what_it_is(bare, run, tmp_path, place):
    (tmp_path / "ordinary").mkdir()
    found = "missing" if place == "nowhere" else "an ordinary directory"
    told = f"lmdbqueue: '{tmp_path / place}' is not a queue directory: it is {found}; nothing was touched: "
    for result in (bare("check", place), run("check", place, code=NO_QUEUE)):
        assert (result.returncode, result.stderr.decode().startswith(told)) == (NO_QUEUE, True)


def test_what_needs_the_extra_says_so_without_it(bare, run, tmp_path):
    result = bare("push", "queue", "a")
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)
    assert b"no command 'push': without click and rich there are only demo and check: pip install " in result.stderr
    assert b"pip install 'lmdbqueue-persistent[cli]'" in result.stderr
    assert b"argument --items: 'x' is not a number of at least 1" in bare("demo", "--items", "x").stderr
    assert b"lmdbqueue-persistent[cli]" in bare("--help").stdout
    assert bare("--version").stdout == run("--version").stdout
    assert os.listdir(tmp_path) == []


def test_a_pickle_begins_with_a_byte_that_no_json_text_begins_with():
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.dumps({"a": 1}, protocol).startswith(b"\x80")
    with pytest.raises(ValueError, match="decode"):
        json.loads(b"\x80")


def test_a_closed_output_takes_no_item_and_a_closed_input_gives_none(run, open_queue, tmp_path):
    run("push", "queue", "a")

    def in_shell(command):
        told = subprocess.run(  # noqa: S602  (constants)
            f"exec {sys.executable} -m lmdbqueue {command}", shell=True, cwd=tmp_path, capture_output=True, check=False
        )
        return told.returncode, told.stdout, told.stderr

    assert in_shell("pop queue >&-") == (1, b"", b"lmdbqueue: standard output is closed\n")
    assert in_shell("push queue <&-") == (0, b"pushed 0 items\n", b"")
    assert list(open_queue()) == ["a"]


@pytest.mark.parametrize(
    ("items", "lines", "told"),
    [
        (["--json", "1", "{x:1}"], b"", b"lmdbqueue: ITEM 2 is not JSON: "),
        (["--json"], b"1\n{x:1}\n", b"lmdbqueue: line 2 is not JSON: "),
        ([b"\xff"], b"", b"lmdbqueue: ITEM 1 is not UTF-8: "),
        ([], b"a\nb\n\xff\n", b"lmdbqueue: line 3 is not UTF-8: "),
    ],
)
def test_an_item_that_is_not_what_it_is_said_to_be_is_named(tmp_path, items, lines, told):
    result = subprocess.run(
        [*COMMAND, "push", "queue", *items],
        cwd=tmp_path,
        env=ENVIRONMENT,
        input=lines,
        capture_output=True,
        check=False,
        timeout=DEADLINE,
    )
    assert (result.returncode, result.stderr[: len(told)]) == (1, told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x://there"], b"lmdbqueue forward: URL begins with postgresql, "),
        (["/srv/there"], b"lmdbqueue forward: URL begins with postgresql, "),
        (["postgres-ql://user:secret@there/app"], b"not with 'postgres-ql'."),
        (["file:///there", "--header", "a:b"], b"lmdbqueue forward: --header has no effect with file://."),
        (["file:///there", "--qos", "1"], b"lmdbqueue forward: --qos has no effect with file://."),
        (["mqtt://there/a", "--header", "a:b"], b"lmdbqueue forward: --header has no effect with mqtt://."),
        (["http://there/a", "--to", "jobs"], b"lmdbqueue forward: --to has no effect with http://."),
        (["postgresql://there", "--bytes"], b"lmdbqueue forward: --bytes has no effect with postgresql://."),
        (["postgresql://there", "--trust"], b"lmdbqueue forward: --trust has no effect with postgresql://."),
    ],
)
def test_a_target_that_is_none_and_an_option_that_has_no_effect_are_refused(run, open_queue, arguments, told):
    open_queue().close()
    stderr = run("forward", "queue", *arguments, code=2).stderr
    assert told in stderr
    assert b"secret" not in stderr


@pytest.mark.parametrize("url", ["file:///there", "http://there/a", "mqtt://there/a"])
def test_a_queue_that_is_to_be_forwarded_and_is_not_there_is_no_queue(run, tmp_path, open_queue, url):
    assert b"there is no queue at 'mistyped'" in run("forward", "mistyped", url, code=NO_QUEUE).stderr
    open_queue().close()
    told = run("forward", "queue", url, "--name", "jobs", code=NO_QUEUE).stderr
    assert b"there is no queue 'jobs' in 'queue'; existing ones: queue" in told
    assert os.listdir(tmp_path) == ["queue"]


def test_what_is_to_be_imported_and_is_not_there_is_no_queue(run, tmp_path):
    assert b"there is no such file" in run("import", "nowhere", "queue", code=NO_QUEUE).stderr
    assert os.listdir(tmp_path) == []


def test_an_item_that_no_decoder_or_encoder_takes_is_one_line_and_not_stored(run, open_queue):
    deep = "[" * 100_000
    assert b"Traceback" not in run("push", "queue", "--json", deep, code=1).stderr
    open_queue(serializer="msgpack", name="packed").close()
    told = run("push", "queue", "--name", "packed", "--json", "9" * 30, code=1)
    assert b"Traceback" not in told.stderr
