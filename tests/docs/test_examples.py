"""Every code block of README and docs runs, in the order in which it stands there, or says why it does not."""

import pytest
from examples import Document, documents, masked, not_run, with_asserts

NOT_RUN = {
    "README.md": 1,
    "docs/cli.md": 1,
    "docs/guide.md": 1,
    "docs/integrations/celery.md": 1,
    "docs/integrations/http.md": 1,
    "docs/integrations/logging.md": 1,
    "docs/integrations/opentelemetry.md": 2,
    "docs/integrations/huey.md": 1,
    "docs/integrations/prometheus.md": 1,
    "docs/integrations/mqtt.md": 3,
    "docs/operations.md": 1,
    "docs/quickstart.md": 1,
    "docs/scaling.md": 2,
    "docs/verbs.md": 1,
}


@pytest.mark.parametrize("name", documents())
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # python-persistent-queue has no close()
def test_every_block_runs_and_gives_what_stands_there(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)  # and back at the end

    def database():
        server = request.getfixturevalue("postgres")  # skips where there is none
        server.execute("CREATE DATABASE app")
        request.addfinalizer(lambda: server.execute("DROP DATABASE app WITH (FORCE)"))
        return server.url("app")

    document = Document(name, str(tmp_path), database)
    try:
        document.run()
    finally:
        document.close()


def test_the_blocks_that_do_not_run_are_known_and_say_why():
    reasons = {name: list(not_run(name)) for name in documents()}
    assert {name: len(found) for name, found in reasons.items() if found} == NOT_RUN
    assert all(len(reason) > 10 for found in reasons.values() for reason in found)


# --- the mechanism can fail


@pytest.fixture
def document(tmp_path, monkeypatch):
    """Give a function that runs a text as a document."""
    monkeypatch.setattr("examples.ROOT", str(tmp_path))
    monkeypatch.setattr("examples.IS_WRITING", False)
    monkeypatch.chdir(tmp_path)

    def run(text):
        (tmp_path / "page.md").write_text(text)
        Document("page.md", str(tmp_path), lambda: "").run()

    return run


@pytest.mark.parametrize(
    "text",
    [
        "```python\n1 + 1  # 3\n```\n",
        "```python\n1 + 1  # [3\n```\n",
        "```python\nraise OSError\n```\n",
        "```console\n$ echo a\nb\n```\n",
        "```console\n$ echo a; echo b\na\n```\n",
        "```console\n$ true\na\n```\n",
        "```console\necho a\n```\n",
        "```sh\nfalse\n```\n",
        "```\nfoo()\n```\n",
        "```ruby\nfoo()\n```\n",
        "  ```python\n  1 / 0\n  ```\n",
        "~~~python\n1 / 0\n~~~\n",
        "<!-- not run -->\n\n```sh\nfalse\n```\n",
        "<!-- not run: because -->\n\nwords\n\n```python\n1\n```\n",
        "<!-- skip: because -->\n```sh\nfalse\n```\n",
        "<!-- python\nassert False\n-->\n",
        "<!-- file: never-run.py -->\n```python\nassert False\n```\n",
    ],
)
def test_a_block_that_is_wrong_or_passed_over_is_found(document, text):
    with pytest.raises((AssertionError, OSError)):
        document(text)


def test_a_block_that_is_right_is_not_found_wrong(document):
    document(
        "<!-- not run: it would never end -->\n```sh\nyes\n```\n"
        "<!-- python\nx = 1\n-->\n\n```python\nx + 1  # 2\n```\n"
        "<!-- file: a.py -->\n\n```python\nprint('a 3')\n```\n"
        "<!-- numbers vary -->\n\n```console\n$ python a.py\na 4\n```\n"
        "<!-- file: b.py -->\n\n```python\nwhere = 5\n```\n"
        "<!-- python\nimport runpy\nwhere = runpy.run_path('b.py')['where']\nassert where == 5\n-->\n"
        "```text\n1 / 0\n```\n"
    )


def test_only_numbers_are_masked():
    assert masked("a 12 b", numbers=True) == masked("a 3,456 b", numbers=True) != masked("a 12 c", numbers=True)
    assert masked("lost  0", numbers=True) != masked("lost  1", numbers=True)
    assert masked("a 12 b", numbers=False) != masked("a 13 b", numbers=False)
    assert with_asserts("f(1)  # the first\n") == "f(1)  # the first\n"
