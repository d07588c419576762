"""What an index would show of a built package is right: its name, its versions, and every link of README."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from examples import ROOT, anchors, read
from hatchling.builders.sdist import SdistBuilder
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from markdown_it import MarkdownIt

import lmdbqueue

NAME = "lmdbqueue-persistent"
ADDRESS = "https://code.example/queues/lmdbqueue"
PAGE = re.compile(rf"{ADDRESS}/(?:blob|raw)/v{re.escape(lmdbqueue.__version__)}/([^#]+)(?:#(.*))?$")


@pytest.fixture
def built(monkeypatch):
    """Return a function that builds the metadata, as for a repository at an address or at none."""

    def build(address):
        for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("LMDBQUEUE_REPOSITORY", address)
        return ProjectMetadata(ROOT, PluginManager()).core

    return build


def _pythons(core):
    """Return the versions of Python that the classifiers name."""
    return [each.rpartition(" ")[2] for each in core.classifiers if re.search(r":: 3\.\d+$", each)]


def _links(markdown):
    """Return the targets of all links and pictures as the text is rendered."""
    found = []
    tokens = list(MarkdownIt("commonmark").enable("table").parse(markdown))
    while tokens:
        token = tokens.pop()
        tokens += token.children or []
        found += [target for name in ("href", "src") if (target := token.attrs.get(name))]
    return found


def test_every_link_of_readme_on_an_index_leads_to_a_page_that_is_there(built):
    links = _links(built(f"{ADDRESS}/").readme)
    assert len(links) > 30
    for link in links:
        assert link.startswith("https://"), link
        if link.startswith(ADDRESS):
            path, anchor = PAGE.match(link).groups()
            assert os.path.exists(os.path.join(ROOT, path)), link
            assert anchor is None or anchor in anchors(read(path)), link


def test_a_build_that_does_not_know_its_repository_has_no_dead_link(built):
    core = built("")
    links = _links(core.readme)
    assert links
    assert all(link.startswith("https://") and "example" not in link for link in links)
    assert core.urls == {}


def test_the_release_workflow_gives_the_address_of_its_own_repository(built, monkeypatch):
    core = built("")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://code.example")
    monkeypatch.setenv("GITHUB_REPOSITORY", "queues/lmdbqueue")
    monkeypatch.delenv("LMDBQUEUE_REPOSITORY")
    core = ProjectMetadata(ROOT, PluginManager()).core
    assert core.urls["Source"] == ADDRESS
    assert ADDRESS in core.readme


def test_the_package_is_installed_by_one_name_and_each_python_is_named(built):
    core = built(ADDRESS)
    assert core.name == NAME
    assert _pythons(core) == ["3.11", "3.12", "3.13"]
    assert core.requires_python == f">={_pythons(core)[0]}"


@pytest.mark.parametrize("workflow", ["tests", "release"])
def test_each_python_that_is_named_is_one_that_a_workflow_tries(built, workflow):
    (matrix,) = re.findall(r"^ +python: \[(.*)\]$", read(f".github/workflows/{workflow}.yml"), re.MULTILINE)
    assert re.findall(r'"(.*?)"', matrix) == _pythons(built(ADDRESS))


def test_a_wheel_installs_with_each_extra_that_users_have_before_it_is_published():
    extras = set(tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"])
    (tried,) = re.findall(r'^ +for extra in "" (.*); do$', read(".github/workflows/release.yml"), re.MULTILINE)
    assert set(tried.split()) == extras - {"test", "bench", "docs", "lint"}


def test_a_source_distribution_has_every_file_of_the_repository():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("not a git checkout")
    packed = {each.distribution_path for each in SdistBuilder(ROOT).recurse_included_files()}
    assert {name for name in files.stdout.splitlines() if os.path.exists(os.path.join(ROOT, name))} <= packed


def test_the_repository_holds_no_data_that_a_program_left_behind():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("not a git checkout")
    mine = (name for name in files.stdout.split("\0") if not re.search(r"^$|^tests/.*/golden|\.png$", name))
    assert [name for name in mine if b"\0" in Path(ROOT, name).read_bytes()] == []


def test_advice_to_install_something_names_this_package_and_an_extra_that_it_has():
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    files = subprocess.run(["git", "ls-files", "*.py", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("not a git checkout")
    found = 0
    for name in files.stdout.split():
        for distribution, extra in re.findall(r"pip install (?:-\w+ )*['\"]?(lmdb[\w-]*)(?:\[([^]]*)\])?", read(name)):
            assert distribution == NAME, name
            assert set(filter(None, extra.split(","))) <= set(extras), name
            found += 1
    assert found > 10


def test_the_newest_entry_of_the_changelog_and_the_citation_are_of_this_version():
    newest = read("CHANGELOG.md").split("\n## ")[1]
    assert newest.startswith(f"{lmdbqueue.__version__} ")
    assert "\n**Format**: " in newest
    assert f"\nversion: {lmdbqueue.__version__}\n" in read("CITATION.cff")
