"""docs/comparison.md speaks of the versions that were measured, and quotes no figure that the bench does not give."""

import re

from examples import read

import lmdbqueue

PAGE = "docs/comparison.md"
TABLED = r"^\| \**([\w-]+)\** ([\d.]+)"


def _measured():
    """Return the versions of the last full run."""
    results = re.search(r"\((results/[\w-]+\.md)\)", read("bench/NOTES.md"))[1]
    packages = re.search(r"^- packages: (.*)$", read(f"bench/{results}"), re.MULTILINE)[1]
    return dict(each.rsplit(" ", 1) for each in packages.split(", "))


def test_both_tables_have_the_same_queues_in_the_versions_that_were_measured():
    first, second = read(PAGE).split("## What there is")
    found = [set(re.findall(TABLED, table, re.MULTILINE)) for table in (first, second)]
    assert found[0] == found[1]
    assert ("lmdbqueue", lmdbqueue.__version__) in found[0]
    measured = _measured()
    assert len(found[0]) == 10
    for name, version in found[0] - {("lmdbqueue", lmdbqueue.__version__)}:
        assert measured[name] == version


def test_every_figure_of_speed_stands_in_the_bench():
    text = read(PAGE).split("## How fast")[1].split("\n## ")[0]
    figures = re.findall(r"\d+\.\d+|\d+(?= to)|(?<=to )\d+", re.sub(r"\(.*?\)", "", text))
    assert len(figures) >= 7
    for figure in figures:
        assert figure in read("bench/NOTES.md"), figure
