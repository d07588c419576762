"""What several tests of integrations need."""

import logging

import pytest

from lmdbqueue.integrations.logging import DurableHandler


@pytest.fixture
def log(tmp_path):
    """Return a function that makes a logger of its own, with a handler on the queue ``log``."""
    handlers = []

    def log_(**options):
        logger = logging.Logger("app")  # noqa: LOG001  (getLogger would give it to the next test too)
        logger.addHandler(DurableHandler(tmp_path / "log", **options))
        handlers.extend(logger.handlers)
        return logger

    yield log_
    for handler in handlers:
        handler.close()
