"""What docs/scaling.md says of roles is so; that its examples run is ``test_examples``."""

import pytest

import lmdbqueue
from lmdbqueue.postgres import PostgresQueue


def test_a_role_that_may_create_nothing_can_use_a_schema_that_was_made_for_it(postgres):
    postgres.execute("CREATE ROLE service LOGIN")
    postgres.execute("CREATE SCHEMA service AUTHORIZATION service")
    url = postgres.url().replace("postgres@", "service@")
    with PostgresQueue(url, schema="service") as queue:
        queue.push([1, 2])
        with queue.lease():
            pass
        queue.flush()
        assert queue.pop() == 2
    with pytest.raises(lmdbqueue.ServerError, match="permission denied"):
        PostgresQueue(url, schema="another")
    postgres.execute("DROP SCHEMA service CASCADE")
    postgres.execute("DROP ROLE service")
