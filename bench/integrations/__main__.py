"""``python -m bench.integrations NAME``: run one of them, or all."""

import importlib
import sys

NAMES = ("logging", "huey", "celery")

for name in sys.argv[1:] or NAMES:
    importlib.import_module(f"bench.integrations.{name}_").run()
