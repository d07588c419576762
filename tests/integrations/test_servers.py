"""The service of the documents under real web servers: it stops within its grace period, and finishes what it has."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from examples import blocks
from processes import DEADLINE, eventually

import lmdbqueue
from lmdbqueue import PersistentQueue

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(lmdbqueue.__file__)))
GRACE = DEADLINE  # seconds: more than a machine under load takes, and far less than a worker that nobody stops
SERVERS = {
    "uvicorn": ["uvicorn", "service:app", "--fd", "{fd}", "--log-level", "warning"],
    "uvicorn, two workers": ["uvicorn", "service:app", "--fd", "{fd}", "--log-level", "warning", "--workers", "2"],
    "gunicorn": [
        *("gunicorn", "service:app", "--bind", "fd://{fd}", "--workers", "2", "--log-level", "warning"),
        *(
            "--worker-class",
            "uvicorn_worker.UvicornWorker",
            "--graceful-timeout",
            str(int(GRACE)),
            "--no-control-socket",
        ),
    ],
}
WORK = """
    open("begun", "w").close()
    while not os.path.exists("go on"):
        await asyncio.sleep(0.01)
"""


def _service():
    """Return the service of the documents, with a handler that is under way until it is told to go on."""
    (code,) = (block for block in blocks("docs/guide.md", "python") if "FastAPI(" in block)
    line = "    await asyncio.sleep(0)  # your work\n"
    assert line in code
    return "import os\n\n" + code.replace(line, WORK.lstrip("\n"))


@pytest.mark.parametrize("server", SERVERS)
def test_a_service_that_is_told_to_stop_finishes_what_is_under_way_and_ends(server, tmp_path):
    (tmp_path / "service.py").write_text(_service())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        fd, port = listening.fileno(), listening.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", *(each.format(fd=fd) for each in SERVERS[server])],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([os.fspath(tmp_path), ROOT])},
            pass_fds=[fd],
            stderr=subprocess.PIPE,
        )
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/orders", b'{"id": 7}', method="POST")
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:  # noqa: S310  (it is http)
            assert json.load(answer) == {"number": 0}
        eventually((tmp_path / "begun").exists)
        process.send_signal(signal.SIGTERM)
        with PersistentQueue(tmp_path / "orders") as queue:
            assert queue.stats().leased == 1  # it is still under way
            (tmp_path / "go on").touch()
            process.wait(GRACE)
            stats = queue.stats()
        assert (process.returncode in (0, -signal.SIGTERM), stats.waiting, stats.leased) == (True, 0, 0)
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
