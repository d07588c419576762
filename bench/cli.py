"""The command line, and the order of a run: prove the adapters, measure, judge, write, print.

Law: no figure is printed that is not in the file of results too.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import figures
from bench.environment import MEMORY_FILE_SYSTEMS, describe, file_system
from bench.goals import judge
from bench.measure import FULL, QUICK, Results, Run, Scale
from bench.peers import Peer, load_all
from bench.plots import draw
from bench.proof import prove
from bench.tables import as_markdown
from bench.workloads import WORKLOADS

_HERE = os.path.dirname(os.path.abspath(__file__))
_RESULTS = os.path.join(_HERE, "results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; return the exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    scale = QUICK if chosen.quick else FULL
    if chosen.rounds:
        scale = replace(scale, rounds=chosen.rounds)
    names = [name for name in WORKLOADS if not chosen.only or any(word in name for word in chosen.only)]
    if not names:
        parser.error(f"no workload has such a name; there are {', '.join(WORKLOADS)}")
    os.makedirs(chosen.dir, exist_ok=True)
    if file_system(chosen.dir) in MEMORY_FILE_SYSTEMS:
        parser.error("the queues would be in memory, where a sync costs nothing; give a --dir on a disk")
    with tempfile.TemporaryDirectory(dir=chosen.dir, prefix="run-") as directory:
        environment, results, peers = _measure(scale, names, directory)
    if chosen.quick:
        results.remark(
            "quick: small counts and few rounds; what a goal's limit says of 1 GiB or of 10^7 items is not shown"
        )
    stem = os.path.join(
        chosen.out, f"{time.strftime('%Y-%m-%dT%H%M', time.gmtime())}-{'quick' if chosen.quick else 'full'}"
    )
    os.makedirs(chosen.out, exist_ok=True)
    _report(scale, environment, results, peers, stem)
    if not (chosen.quick or chosen.only or chosen.out != _RESULTS):
        for page in figures.write():
            print(f"The figures in {page} are those of this run now", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller counts and fewer rounds: under three minutes")
    parser.add_argument("--only", metavar="WORD", action="append", help="workloads whose name has this word in it")
    parser.add_argument("--rounds", type=int, help=f"{FULL.rounds}, or {QUICK.rounds} when quick")
    parser.add_argument("--out", metavar="DIR", default=_RESULTS, help="for the results")
    parser.add_argument("--dir", default=os.path.join(_HERE, "work"), help="where the queues are made: on a disk")
    return parser


def _measure(scale: Scale, names: Sequence[str], directory: str) -> tuple[dict[str, object], Results, list[type[Peer]]]:
    """Run the workloads with every adapter that proves to be a queue."""
    results = Results()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        peers, missing = load_all()
        for sentence in missing:
            progress.print(sentence)
            results.remark(sentence)
        packages = sorted({peer.package for peer in peers} - {"lmdbqueue"}, key=str.lower)
        environment = describe(directory, ["lmdbqueue", *packages])
        run = Run(scale, directory, peers, results, progress)
        run.peers = _proven(run)
        for name in names:
            try:
                WORKLOADS[name](run)
            except Exception as error:
                what = f"{type(error).__name__}: {error}".replace(directory, "DIR")
                results.remark(f"{name} was not measured: {what}")
    return environment, results, list(run.peers)


def _proven(run: Run) -> list[type[Peer]]:
    """Return the peers that keep order in each of their modes; the others are left out, with a remark."""
    proven = []
    bar = run.progress.add_task("proof of the adapters", total=len(run.peers))
    for peer in run.peers:
        try:
            for mode in ("durable", "between", "off"):
                if peer.can_be(mode):
                    with run.fresh_directory() as directory:
                        prove(peer, mode, directory)
        except Exception as error:
            what = f"{type(error).__name__}: {error}".replace(run.directory, "DIR")
            run.results.remark(f"{peer.name} is left out: {what}")
        else:
            proven.append(peer)
        run.progress.advance(bar)
    return proven


def _report(scale: Scale, environment: dict[str, object], results: Results, peers: list[type[Peer]], stem: str) -> None:
    """Write the files whose names begin with ``stem``, and print the tables."""
    verdicts = judge(results, scale, peers)
    text = as_markdown(environment, results, verdicts, peers)
    pictures = draw(results, stem)
    content = {
        "environment": environment,
        "scale": asdict(scale),
        "series": results.as_json(),
        "goals": [verdict.as_json() for verdict in verdicts],
        "remarks": results.remarks,
    }
    with open(f"{stem}.json", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
    with open(f"{stem}.md", "w", encoding="utf-8") as file:
        file.write(text + "".join(f"\n![]({picture})\n" for picture in pictures))
    print(text)
    print(f"The same in {stem}.md, with plots, and in {stem}.json", file=sys.stderr)
