"""The map in ``lmdbqueue/__init__.py`` is true: who imports whom, and what an import costs."""

import ast
import os
import re
import subprocess
import sys

import pytest

import lmdbqueue
import lmdbqueue.postgres

PACKAGE = os.path.dirname(os.path.abspath(lmdbqueue.__file__))
ROOT = os.path.dirname(PACKAGE)
PACKAGES = [lmdbqueue, lmdbqueue.postgres]


def _modules(package):
    """Return the names of the modules of a package, and of the packages in it, as imports have them."""
    for entry in sorted(os.scandir(os.path.dirname(package.__file__)), key=lambda entry: entry.name):
        if entry.name.endswith(".py") or os.path.exists(os.path.join(entry.path, "__init__.py")):
            yield f"{package.__name__}.{entry.name.removesuffix('.py')}"


MODULES = [module for package in PACKAGES for module in _modules(package)]


def _tree(module):
    path = os.path.join(ROOT, *module.split("."))
    with open(os.path.join(path, "__init__.py") if os.path.isdir(path) else path + ".py", encoding="utf-8") as file:
        return ast.parse(file.read())


def _imports(module):
    """Return the full names of all that a module imports, wherever in it; of a package, also what its modules do."""
    found = set()
    for package in PACKAGES[1:]:
        if module == package.__name__:
            found = {name for inner in _modules(package) for name in _imports(inner)}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _map(package):
    """Return the rows of the map of a package: lists of modules, from the top down."""
    rows = re.findall(r"^(``\w+``(?:, ``\w+``)*) ", package.__doc__, re.MULTILINE)
    return [[f"{package.__name__}.{name}" for name in re.findall(r"``(\w+)``", row)] for row in rows]


def test_the_contracts_of_import_linter_are_kept():
    pytest.importorskip("importlinter", reason="import-linter is not installed: pip install 'lmdbqueue[lint]'")
    if not os.path.exists(os.path.join(ROOT, "pyproject.toml")):
        pytest.skip("the contracts stand in pyproject.toml, and this is an installed package")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


def _importers(name):
    return [each for each in MODULES if any(re.match(rf"{name}(\.|$)", found) for found in _imports(each))]


def test_only_the_generation_imports_lmdb_and_only_postgres_imports_psycopg():
    assert _importers("lmdb") == ["lmdbqueue._generation"]
    assert {name.split(".")[1] for name in _importers("psycopg")} == {"postgres"}


def test_nothing_is_imported_behind_the_back_of_the_import_statement():
    for module in MODULES:
        names = {node.id for node in ast.walk(_tree(module)) if isinstance(node, ast.Name)}
        assert not names & {"__import__", "importlib", "exec", "eval"}, module


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_names_every_module_once(package):
    named = sorted(module for row in _map(package) for module in row)
    assert named == [each for each in _modules(package) if not each.endswith("__init__")]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down_the_map_only(package):
    order = [module for row in _map(package) for module in row]
    depth = package.__name__.count(".") + 2
    for position, module in enumerate(order):
        inside = {".".join(name.split(".")[:depth]) for name in _imports(module)} & set(order)
        assert inside - {module} <= set(order[position + 1 :]), module


def test_every_module_says_what_it_owns_its_law_and_what_it_must_not_know():
    for module in MODULES:
        if module.endswith(("__init__", "__main__", ".postgres")):
            continue
        doc = re.sub(r"\s+", " ", ast.get_docstring(_tree(module)))
        assert [word for word in ("Owns: ", "Law: ", "Must not know: ") if word not in doc] == [], module


HEAVY = {"argparse", "asyncio", "ctypes", "hypothesis", "lmdb.verify", "logging", "multiprocessing", "subprocess"}


def _newly_imported(statement):
    program = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    environment = {**os.environ, "PYTHONPATH": ROOT}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return set(result.stdout.split())


def test_importing_the_library_leaves_out_what_few_need():
    imported = _newly_imported("import lmdbqueue")
    assert {"lmdbqueue._queue", "lmdb"} <= imported
    assert imported & HEAVY == set()
    assert not any(name.startswith(("psycopg", "lmdbqueue.postgres")) for name in imported)


def test_using_a_queue_without_waiting_imports_nothing_heavy_but_for_statx(tmp_path):
    use = f"q = lmdbqueue.PersistentQueue('q', {os.fspath(tmp_path)!r}); q.push([1]); q.pop(); q.flush(True); q.close()"
    assert _newly_imported(f"import lmdbqueue; {use}") & HEAVY <= {"ctypes"}


def test_every_public_name_is_there():
    assert sorted(lmdbqueue.__all__) == list(lmdbqueue.__all__)
    assert all(hasattr(lmdbqueue, name) for name in lmdbqueue.__all__)
