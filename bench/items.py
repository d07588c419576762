"""What is pushed: the same items for every queue, made before the clock starts.

An item is a small dict, of the size that a reading of a sensor or a job's description has: about 150
bytes when pickled. Its ``id`` tells where it stood in line, so order and double delivery can be checked.
"""

from typing import Any

Item = dict[str, Any]


def make_items(n: int, first: int = 0) -> list[Item]:
    """Return ``n`` items with the ids from ``first`` on."""
    return [
        {
            "id": number,
            "kind": "reading",
            "sensor": "hall-3/engine-07/temperature",
            "at": 1_795_478_400.5 + number,
            "value": 83.25,
            "unit": "degree",
            "tags": ["raw", "day"],
        }
        for number in range(first, first + n)
    ]
