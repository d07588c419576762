"""Figures of speed are those of the newest full run, and docs/comparison.md names what was measured."""

import importlib.util
import os
import re

import pytest
from examples import ROOT, read

import lmdbqueue

PAGE = "docs/comparison.md"
TABLED = r"^\| \**([\w-]+)\** ([\d.]+)"
_spec = importlib.util.spec_from_file_location("bench_figures", os.path.join(ROOT, "bench", "figures.py"))
figures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(figures)


def test_both_tables_have_the_same_queues_in_the_versions_that_were_measured():
    first, second = read(PAGE).split("## Features")
    found = [set(re.findall(TABLED, table, re.MULTILINE)) for table in (first, second)]
    assert found[0] == found[1]
    assert ("lmdbqueue", lmdbqueue.__version__) in found[0]
    measured = figures.newest().content["environment"]["packages"]
    assert {name for name, _ in found[0]} >= measured.keys() - {"lmdb", "rocksq"}  # the binding; bytes, not durable
    for name, version in found[0] - {("lmdbqueue", lmdbqueue.__version__)}:
        is_said = f"| {name} {version} (measured: {measured.get(name)}) |" in first
        assert is_said or measured.get(name, version) == version, name


@pytest.mark.parametrize("page", figures.PAGES)
def test_the_figures_of_a_page_are_those_of_the_newest_full_run(page):
    text = read(page)
    assert len(list(figures.marked(text))) == 1
    assert figures.filled(page, figures.newest()) == text, "python -m bench.figures"


@pytest.mark.parametrize("page", ["README.md", PAGE])
def test_no_figure_of_speed_stands_beside_the_marks(page):
    text = read(page).split("## How fast")[1].split("\n## ")[0]
    for part in figures.marked(text):
        text = text.replace(part, "")
    assert not re.search(r"\d", text), "a figure that no run would change"


def test_a_figure_of_another_run_is_found_wherever_it_stands():
    for page in figures.PAGES:
        run = figures.newest()
        run.medians = {key: value * 2 for key, value in run.medians.items()}
        for goal in run.content["goals"]:
            goal["reached"] *= 2
        assert figures.filled(page, run) != read(page)
