"""``python -m lmdbqueue``: the command line."""

from lmdbqueue.cli import main

if __name__ == "__main__":
    main()
