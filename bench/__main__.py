"""Start the command line; spawned processes import this file too, so it imports nothing for them."""

import sys

if __name__ == "__main__":
    from bench.cli import main

    sys.exit(main())
