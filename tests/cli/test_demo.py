"""The command line: the demo really kills, really counts, and says so when something is lost."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys

import pytest
from processes import eventually

import lmdbqueue
from lmdbqueue import PersistentQueue, cli
from lmdbqueue.cli import _demo

PATIENCE = 120.0  # seconds
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(lmdbqueue.__file__)))


def _run(place, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "lmdbqueue", *arguments],
        env={**os.environ, "PYTHONPATH": ROOT, "TMPDIR": os.fspath(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its producer and consumer can be ended with it
    )
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _rows(output):
    """Return the rows of the account."""
    return dict(re.findall(r"^ *(\S.*?)  (\S.*)$", output, re.MULTILINE))


def test_the_demo_kills_both_processes_and_nothing_is_lost(tmp_path):
    result = _run(tmp_path, "demo", "--items", "3000")
    assert (result.returncode, result.stderr) == (0, "")
    rows = _rows(result.stdout)
    assert (rows["lost"], rows["altered"], rows["check"]) == ("0", "0", "nothing wrong")
    assert int(rows["kills"]) >= 5  # a process that is done before its turn is not killed
    assert int(rows["pushed"].split(" ")[0].replace(",", "")) >= 3000  # noted twice when killed in between
    assert int(rows["delivered"].replace(",", "")) >= 3000
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("before", ["", "sys.modules['click'] = None; "])  # without the extra, too
def test_ctrl_c_ends_the_demo_with_its_processes_and_without_a_traceback(tmp_path, before):
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; {before}from lmdbqueue import cli; cli.main()",
            "demo",
            "--items",
            "1000000",
        ],
        env={**os.environ, "PYTHONPATH": ROOT, "TMPDIR": os.fspath(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        eventually(lambda: any(tmp_path.glob("lmdbqueue-demo-*/queue/queue.json")))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors.strip()) == (130, "")
    assert os.listdir(tmp_path) == []


def test_the_demo_takes_a_text_of_ones_own(tmp_path):
    source = tmp_path / "mine.txt"
    source.write_text("first\nsecond \u2603\n\nfourth\ttab", encoding="utf-8")
    result = _run(tmp_path, "demo", "--input", os.fspath(source), "--items", "200")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"200 lines of {source}" in result.stdout
    assert _rows(result.stdout)["lost"] == "0"


def test_an_empty_text_is_a_text_of_one_empty_line(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    result = _run(tmp_path, "demo", "--input", os.fspath(tmp_path / "empty.txt"), "--items", "500")
    assert result.returncode == 0
    assert _rows(result.stdout)["lost"] == "0"


def test_a_consumer_that_was_killed_after_its_last_delete_ends_when_it_begins_anew(tmp_path):
    place = os.fspath(tmp_path)
    (tmp_path / "lines.txt").write_text("a\nb\nc")
    _demo._produce(place, os.fspath(tmp_path / "lines.txt"), 3)
    consume = multiprocessing.get_context("spawn").Process
    for _ in range(2):  # the first does it all; the second stands for the one that follows a kill at that moment
        consumer = consume(target=_demo._consume, args=(place,))
        consumer.start()
        consumer.join(5)
        ended = consumer.exitcode
        consumer.kill()
        consumer.join()
        assert ended == 0


LINES = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("sink", "account"),
    [
        ("0\ta\n1\tb\n2\tc\n", (0, {"lost": "0", "altered": "0", "delivered": "3"})),
        ("0\ta\n2\tc\n", (1, {"lost": "1", "altered": "0", "delivered": "2"})),
        ("", (1, {"lost": "3", "altered": "0", "delivered": "0"})),
        ("0\ta\n1\tB\n2\tc\n", (1, {"lost": "1", "altered": "1", "delivered": "3"})),
        ("0\ta\n1\tb\n1\tb\n2\tc\n", (0, {"lost": "0", "altered": "0", "delivered": "4"})),
        ("0\ta\n1\tb\n2\t", (1, {"lost": "1", "altered": "0", "delivered": "2"})),
    ],
    ids=["whole", "one lost", "all lost", "altered", "twice", "torn"],
)
def test_the_exit_code_and_the_account_tell_what_the_sink_lacks(tmp_path, monkeypatch, capsys, sink, account):
    def deliver(place, _source, _items):
        (PersistentQueue("queue", place)).close()
        with open(os.path.join(place, "sink"), "w", encoding="utf-8") as file:
            file.write(sink)
        with open(os.path.join(place, "acknowledged"), "wb") as file:
            file.write(b"....")
        return 0

    monkeypatch.setattr(_demo, "_kill_again_and_again", deliver)
    source = tmp_path / "lines.txt"
    source.write_text("\n".join(LINES))
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--input", os.fspath(source), "--items", "3"])
    code, expected = account
    assert caught.value.code == code
    rows = _rows(capsys.readouterr().out)
    assert {name: rows[name] for name in expected} == expected
    assert rows["delivered twice"].startswith("1 " if sink.count("\tb\n") == 2 else "0 ")


def test_a_queue_that_is_not_whole_fails_the_demo_too(tmp_path, monkeypatch, capsys):
    def deliver(place, _source, _items):
        (PersistentQueue("queue", place)).close()
        for name, content in (("sink", b"0\ta\n"), ("acknowledged", b".."), ("queue/stranger", b"")):
            with open(os.path.join(place, name), "wb") as file:
                file.write(content)
        return 0

    monkeypatch.setattr(_demo, "_kill_again_and_again", deliver)
    source = tmp_path / "lines.txt"
    source.write_text("a")
    assert _demo.run(os.fspath(source), 1) == 1
    assert "'stranger'" in _rows(capsys.readouterr().out)["check"]


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]], ids=" ".join)
def test_help_is_given(tmp_path, arguments):
    result = _run(tmp_path, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: lmdbqueue")
    assert "killed" in result.stdout or "Kill " in result.stdout


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--items", "many"], ["demo", "--speed"]], ids=" ".join)
def test_a_wrong_command_line_ends_with_2_and_says_how_it_should_be(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "--help" in capsys.readouterr().err
