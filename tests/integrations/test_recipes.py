"""The recipes that are no Python: what reads such files takes them."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from examples import blocks


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_takes_the_unit(tmp_path):
    (unit,) = (block for block in blocks("docs/integrations/recipes.md", "text") if "[Service]" in block)
    unit = unit.replace("/srv/app/.venv/bin/python", sys.executable).replace("/srv/app", str(tmp_path))
    unit = unit.replace("User=app", "User=root")
    path = tmp_path / "orders.service"
    path.write_text(unit)
    told = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60, check=False
    ).stderr
    assert [line for line in told.splitlines() if os.fspath(path) in line] == []


def test_the_containers_of_the_compose_file_share_pids_and_the_directory():
    (compose,) = (block for block in blocks("docs/integrations/recipes.md", "text") if "services:" in block)
    assert len(re.findall(r"volumes: \[queue:/srv/app/queue\]", compose)) == 2
    assert 'pid: "service:api"' in compose
