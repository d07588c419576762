"""Opening a connection, and its settings.

Owns: the settings that our statements need. Law: our statements mean the same under all settings of the server, the
role or the database; settings that a user makes on a connection in a block end with the block. Must not know: what a
connection is used for.
"""

import re
from typing import Any, Final, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lmdbqueue._base.errors import VersionError
from lmdbqueue.postgres._silence import Connection, host_limits

_OLDEST: Final = 140_000  # PostgreSQL 14, the oldest that is maintained
_WITH_TRANSACTION_TIMEOUT: Final = 170_000
_LONG: Final = 130  # seconds to connect, psycopg's own default
_MAX_TIMEOUT: Final = (1 << 31) - 1  # ms

_DEFAULTS: Final = {"application_name": "lmdbqueue", "connect_timeout": "5"}

# In any encoding of the database, names and messages are exchanged as UTF-8
_ENCODING: Final = {"client_encoding": "UTF8"}

# Settings of the user's that hold in a block again
USERS: Final = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
_STARTED: Final = "(SELECT extract(epoch FROM backend_start)::text FROM pg_stat_get_activity(pg_backend_pid()))"
# A role that this one acts as (ALTER ROLE ... SET role) may know and end nothing of it: for this statement it does not
AS_ITSELF: Final = "set_config('role', 'none', true) = 'none'"
OPENED: Final = (
    f"SELECT pg_backend_pid(), {_STARTED}, "
    + ", ".join(f"current_setting('{name}')" for name in USERS)
    + " WHERE "
    + AS_ITSELF
)

# What is read after a lock was waited for must be newer than the lock, so each statement has a snapshot of its own
_SETTINGS: Final = """
SELECT set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false), set_config('client_connection_check_interval', '2s', false),
       set_config('idle_session_timeout', '0', false), set_config('idle_in_transaction_session_timeout', '0', false),
       set_config('statement_timeout', '0', false), set_config('lock_timeout', '{}', false),
       set_config('default_transaction_isolation', 'read committed', false){}
"""
_TRANSACTION_TIMEOUT: Final = ", set_config('transaction_timeout', '0', false)"  # of PostgreSQL 17 and later
# A plan that was made when a table was nearly empty is kept, and must not read the whole table later; making a new one
# for each call took more time than to execute it
_PLANNER: Final = """
SELECT set_config('enable_seqscan', {0}, {1}), set_config('enable_sort', {0}, {1}),
       set_config('enable_bitmapscan', {0}, {1}), set_config('enable_hashjoin', {0}, {1}),
       set_config('enable_mergejoin', {0}, {1}), set_config('jit', 'off', {1}),
       set_config('max_parallel_workers_per_gather', '0', {1}),
       set_config('plan_cache_mode', {2}, {1})
"""
OUR_PLANS: Final = _PLANNER.format("'off'", "false", "'force_generic_plan'")
USUAL_PLANS: Final = _PLANNER.format("'on'", "true", "'auto'")
USUAL_LIMITS: Final = "SELECT " + ", ".join(f"set_config('{name}', %s, true)" for name in USERS)
# After statements of a user's own: what they set goes, and ours comes back
_RESET: Final = "RESET SESSION AUTHORIZATION; RESET ROLE; UNLISTEN *; RESET ALL"
_QUOTED: Final = re.compile('".*"', re.DOTALL)
_ATTRIBUTES: Final = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")


def shown(conninfo: str) -> str:
    """Return an address without its secrets; raise ``ValueError`` if it is not one."""
    try:
        known = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        told = str(error).strip()
        if not told.startswith("invalid connection option"):
            told = _QUOTED.sub("...", told)  # it may have a password
        message = f"this is not the address of a database, like 'postgresql://host/name': {told}"
        raise ValueError(message) from None
    return make_conninfo("", **{key: known[key] for key in ("host", "port", "user", "dbname") if known.get(key)})


def connect(conninfo: str, path: str, seconds: float, silent: float) -> Connection:
    """Connect to a server that is new enough, in so many seconds. Raises what psycopg raises.

    ``silent``: after how many seconds of silence its host counts as gone.
    """
    known: dict[str, Any] = {**_DEFAULTS, **host_limits(silent), **conninfo_to_dict(conninfo), **_ENCODING}
    if (limit := str(known["connect_timeout"])).isdigit():
        seconds = min(int(limit) or _LONG, seconds / len(str(known.get("host", "")).split(",")))
    connection = Connection.opened(make_conninfo("", **known), seconds, silent)
    version = connection.info.server_version
    if version < _OLDEST:
        connection.close()
        raise VersionError(path, f"a server of version {version // 10_000}", "use PostgreSQL 14 or later")
    return connection


def settle_in(connection: psycopg.Connection[Any], patience: float) -> None:
    """Make the settings that our statements need."""
    connection.execute(_settings(connection, patience), prepare=False)
    connection.execute(OUR_PLANS, prepare=False)


def attributes(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Return psycopg's own settings of a connection, for ``reset``."""
    return {name: getattr(connection, name) for name in _ATTRIBUTES}


def reset(connection: psycopg.Connection[Any], before: dict[str, Any], patience: float) -> None:
    """Undo all settings that a user may have made on a connection."""
    for name, value in before.items():
        if getattr(connection, name) is not value:
            setattr(connection, name, value)
    connection.execute(f"{_RESET}; {_settings(connection, patience)}; {OUR_PLANS}", prepare=False)


def _settings(connection: psycopg.Connection[Any], patience: float) -> LiteralString:
    later = _TRANSACTION_TIMEOUT if connection.info.server_version >= _WITH_TRANSACTION_TIMEOUT else ""
    return _SETTINGS.format(milliseconds(patience), later)


def milliseconds(seconds: float) -> str:
    return str(min(_MAX_TIMEOUT, max(1, int(seconds * 1000))))
