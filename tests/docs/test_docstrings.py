"""What ``help()`` shows of each public class and function describes every parameter, and every field of a value."""

import ast
import glob
import importlib
import inspect
import os
import re

import pytest
from examples import ROOT, read

MADE_FOR_USERS = {  # nobody calls their constructors: a verb does, or kombu
    "AsyncDeadLetters",
    "AsyncLease",
    "AsyncReader",
    "AsyncState",
    "Channel",
    "DeadLetter",
    "DeadLetters",
    "Lease",
    "Reader",
    "Transaction",
    "Transport",
}
PAGES = sorted(os.listdir(os.path.join(ROOT, "docs", "reference")))
MODULES = [("" if page == "lmdbqueue.rst" else "lmdbqueue.") + page.removesuffix(".rst") for page in PAGES]


def _is_ours(cls):
    return cls.__module__.startswith("lmdbqueue")


def _named(function):
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind not in {each.VAR_POSITIONAL, each.VAR_KEYWORD}]


def _methods(cls):
    """Yield the public methods that are not overrides of a framework's, whose documentation that is."""
    for owner in filter(_is_ours, cls.__mro__):
        for name, value in vars(owner).items():
            function = getattr(value, "__func__", value)  # of a classmethod
            is_foreign = any(name in vars(each) for each in cls.__mro__ if not _is_ours(each))
            if inspect.isfunction(function) and not name.startswith("_") and not is_foreign:
                yield name, function


def _documented(module):
    """Yield each public callable of a module: its name, its docstring, the names of its parameters."""
    for name in importlib.import_module(module).__all__:
        thing = getattr(importlib.import_module(module), name)
        if not inspect.isclass(thing):
            if inspect.isfunction(thing):
                yield name, thing.__doc__, _named(thing)
            continue
        is_value = issubclass(thing, Exception | tuple) or hasattr(thing, "__dataclass_fields__")
        if inspect.isfunction(thing.__init__) and not is_value and name not in MADE_FOR_USERS:
            yield name, inspect.getdoc(thing), _named(thing.__init__)[1:]
        for method, function in _methods(thing):
            yield (
                f"{name}.{method}",
                function.__doc__,
                [each for each in _named(function) if each not in {"self", "cls"}],
            )


def _crooked(docstring):
    """Yield the lines with text between two columns of a table, and rulers that are none."""
    gaps = ruler = None
    for line in docstring.splitlines():
        if re.fullmatch(r"[ =]*={4}[ =]*", line):
            if ruler not in {None, line} or " =" not in line:
                yield line
            ruler = line
            gaps = [found.span() for found in re.finditer(" +", line)]
        elif not line:
            gaps = ruler = None
        elif gaps and any(line[begin:end].strip() for begin, end in gaps):
            yield line


def test_the_tables_of_modules_are_straight():
    paths = glob.glob(os.path.join(ROOT, "lmdbqueue", "**", "*.py"), recursive=True)
    docstrings = [ast.get_docstring(ast.parse(read(path))) or "" for path in paths]
    assert sum("====  ====" in each for each in docstrings) > 10
    assert [line for each in docstrings for line in _crooked(each)] == []


@pytest.mark.parametrize("line", ["=======", "====  ===", "abcdef", "a   b"])
def test_a_crooked_line_of_a_table_is_found(line):
    table = "====  ====\na     b\n====  ====\n{}\n====  ====\n"
    assert list(_crooked(table.format("a     bcd"))) == []
    assert line in _crooked(table.format(line))


@pytest.mark.parametrize("module", MODULES)
def test_every_parameter_of_a_public_name_is_described(module):
    for name, text, parameters in _documented(module):
        assert text, name
        described = re.split(r"^\s*Args:$", text, maxsplit=1, flags=re.MULTILINE)[-1]
        missing = [each for each in parameters if not re.search(rf"^\s+{each}: \S", described, re.MULTILINE)]
        assert missing == [], name


@pytest.mark.parametrize("module", MODULES)
def test_every_field_of_a_public_value_is_described(module):
    for name in importlib.import_module(module).__all__:
        thing = getattr(importlib.import_module(module), name)
        for field in getattr(thing, "_fields", ()) or getattr(thing, "__dataclass_fields__", ()):
            described = thing.__doc__.split("Attributes:")[-1]
            assert re.search(rf"^\s+{field}: \S", described, re.MULTILINE), f"{name}.{field}"
