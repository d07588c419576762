"""The map in ``lmdbqueue/__init__.py`` is true: who imports whom, and what an import costs."""

import ast
import importlib
import inspect
import os
import pickle
import re
import subprocess
import sys

import pytest

import lmdbqueue
import lmdbqueue.postgres

PACKAGE = os.path.dirname(os.path.abspath(lmdbqueue.__file__))
ROOT = os.path.dirname(PACKAGE)
FOLDERS = sorted(os.path.relpath(place, PACKAGE) for place, _, files in os.walk(PACKAGE) if "__init__.py" in files)
PACKAGES = FOLDERS[1:]  # without the package itself


def _modules_in(place):
    return sorted(name.removesuffix(".py") for name in os.listdir(place) if name.endswith(".py"))


MODULES = [
    *_modules_in(PACKAGE),
    *(f"{each}/{module}" for each in PACKAGES for module in _modules_in(os.path.join(PACKAGE, each))),
]


def _tree(module):
    with open(os.path.join(PACKAGE, module + ".py"), encoding="utf-8") as file:
        return ast.parse(file.read())


def _imports(module):
    """Return the full names of all that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _inside(package):
    """Return the packages directly in a package."""
    return [os.path.basename(each) for each in PACKAGES if os.path.dirname(each) == package]


def _map(package=""):
    """Return the modules in the map of a package, from the top down."""
    return re.findall(r"^``(\w+)`` ", ast.get_docstring(_tree(os.path.join(package, "__init__"))), re.MULTILINE)


def test_the_contracts_of_import_linter_are_kept():
    pytest.importorskip(
        "importlinter", reason="import-linter is not installed: pip install 'lmdbqueue-persistent[lint]'"
    )
    if not os.path.exists(os.path.join(ROOT, "pyproject.toml")):
        pytest.skip("the contracts stand in pyproject.toml, and this is an installed package")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "12 kept, 0 broken" in result.stdout


def _importers(name):
    return [each for each in MODULES if any(re.match(rf"{name}(\.|$)", found) for found in _imports(each))]


def test_only_one_package_imports_lmdb_and_only_postgres_imports_psycopg():
    assert {os.path.dirname(name) for name in _importers("lmdb")} == {"_lmdb"}
    assert {os.path.dirname(name) for name in _importers("psycopg")} == {"postgres"}


def test_nothing_is_imported_behind_the_back_of_the_import_statement():
    for module in MODULES:
        names = {node.id for node in ast.walk(_tree(module)) if isinstance(node, ast.Name)}
        assert not names & {"__import__", "importlib", "exec", "eval"}, module


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_the_map_of_a_package_names_everything_in_it_once(package):
    there = {os.path.basename(each) for each in MODULES if os.path.dirname(each) == package} - {"__init__"}
    assert sorted(_map(package)) == sorted([*there, *_inside(package)])


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_imports_go_down_the_map_only(package):
    order = _map(package)
    prefix = ".".join(["lmdbqueue", *package.split("/"), ""]) if package else "lmdbqueue."
    for position, module in enumerate(order):
        place = os.path.join(package, module)
        files = [each for each in MODULES if each == place or each.startswith(f"{place}/")]
        names = set().union(*map(_imports, files))
        inside = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
        allowed = {*order[position + 1 :], *([module] if module in _inside(package) else [])}
        assert inside & set(order) <= allowed, module


def test_where_to_look_names_files_and_what_they_define():
    with open(os.path.join(ROOT, "docs", "design.md"), encoding="utf-8") as file:
        table = file.read().split("Where to look:")[1].split("\n## ")[0]
    named = re.findall(r"`([\w/]+)\.py`(?: \(([^)]*)\))?", table)
    assert len(named) >= 10
    for path, what in named:
        defined = {each.name for each in ast.walk(_tree(path)) if isinstance(each, (ast.ClassDef, ast.FunctionDef))}
        assert set(re.findall(r"`(\w+)`", what)) <= defined, path


def test_every_module_says_what_it_owns():
    for module in MODULES:
        if module.endswith(("__init__", "__main__", ".postgres")):
            continue
        doc = re.sub(r"\s+", " ", ast.get_docstring(_tree(module)))
        assert "Owns: " in doc, module


HEAVY = {"argparse", "asyncio", "ctypes", "hypothesis", "lmdb.verify", "logging", "multiprocessing", "subprocess"}

LATE = {
    "lmdbqueue._local.check",
    "lmdbqueue._local.compaction",
    "lmdbqueue._local.salvage",
    "lmdbqueue._local.state",
    "lmdbqueue._lmdb.changed_records",
    "lmdbqueue._lmdb.options_record",
    "lmdbqueue._lmdb.sound_pages",
    "lmdbqueue._lmdb.checkpoint_slots",
    "lmdbqueue._lmdb.structure",
    "lmdbqueue._local.checkpoints",
    "lmdbqueue._local.reader_engine",
    "lmdbqueue._model.readers",
    "lmdbqueue._verbs.engine",
    "lmdbqueue._model.invariants",
    "lmdbqueue._verbs.reader",
    "lmdbqueue._verbs.state",
    "lmdbqueue._verbs.worker",
}


def _newly_imported(statement):
    program = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    environment = {**os.environ, "PYTHONPATH": ROOT}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return set(result.stdout.split())


def test_importing_the_library_leaves_out_what_few_need():
    imported = _newly_imported("import lmdbqueue")
    assert {"lmdbqueue._local.queue", "lmdb"} <= imported
    assert imported & (HEAVY | LATE) == set()
    floors = {name.split(".")[1] for name in imported if name.startswith("lmdbqueue.")}
    assert floors == {"_base", "_host", "_lmdb", "_local", "_model", "_verbs"}
    assert len([name for name in imported if name.startswith("lmdbqueue")]) <= 65, "each costs an import 1 %"
    ours = [each for name in imported if name.startswith("lmdbqueue") for each in vars(sys.modules[name]).values()]
    typed = {
        each.__name__ for each in ours if type(each) is type and issubclass(each, tuple) and hasattr(each, "_fields")
    }
    assert not typed, "a class of typing.NamedTuple costs an import ten times one of _base.values.NamedTuple"


def test_using_a_queue_without_waiting_imports_nothing_heavy_but_for_statx(tmp_path):
    use = f"q = lmdbqueue.PersistentQueue('q', {os.fspath(tmp_path)!r}); q.push([1]); q.pop(); q.flush(True); q.close()"
    assert _newly_imported(f"import lmdbqueue; {use}") & HEAVY <= {"ctypes"}


def test_tools_can_show_the_signatures_of_named_tuples():
    assert str(inspect.signature(lmdbqueue.ReaderStats)).startswith("(name: 'str', position: 'int', lag: 'int'")
    assert inspect.signature(lmdbqueue.Stats).parameters["readers"].default == ()


def test_every_public_name_is_there():
    assert sorted(lmdbqueue.__all__) == list(lmdbqueue.__all__)
    assert all(hasattr(lmdbqueue, name) for name in lmdbqueue.__all__)


def test_what_is_public_is_called_so_in_tracebacks_and_pickles():
    for name in lmdbqueue.__all__:
        assert getattr(lmdbqueue, name).__module__ == "lmdbqueue", name
    assert pickle.loads(pickle.dumps(lmdbqueue.Retry(3))) == lmdbqueue.Retry(3)
    for page in os.listdir(os.path.join(ROOT, "docs", "reference")):
        module = (
            importlib.import_module("lmdbqueue." + page.removesuffix(".rst")) if page != "lmdbqueue.rst" else lmdbqueue
        )
        for name in module.__all__:
            assert getattr(module, name).__module__ in {"lmdbqueue", module.__name__}, name
