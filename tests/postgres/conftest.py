"""Schemas of which a test may do anything."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def schema(postgres) -> Iterator[str]:
    """Give the name of a schema that is not there yet, and that only one test uses."""
    name = f"test_{os.urandom(4).hex()}"
    yield name
    postgres.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')
