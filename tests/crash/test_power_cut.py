"""A power cut at any moment takes back nothing that was acknowledged: the replay of what strace recorded.

A failing state is kept in the folder that the failure names, as the directory ``q`` that a cut would leave.

LMDBQUEUE_STATES says how many states the long form (``-m long``) tests.
"""

import os
from itertools import count

import mutants
import pytest
import replay
from scenarios import SCENARIOS

STATES = 150  # a scenario; test_cuts and test_interval_cuts have 41,000 more, without strace
FAULT_STATES = 1_700  # of a planted fault, at the least
LONG_STATES = int(os.environ.get("LMDBQUEUE_STATES", "2000000"))
LONG_ROUND = 20_000  # states of one recording

TRIES = 10  # recordings in which a planted fault may show: how calls meet is up to the system

TOLD = "states after a power cut"


@pytest.fixture(autouse=True)
def _machine(needs) -> None:
    needs("strace", "root")


@pytest.fixture
def keep(tmp_path) -> str:
    return str(tmp_path / "failed")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_after_a_cut_at_any_moment_the_queue_holds_all_that_was_acknowledged(scenario, tmp_path, keep, record_property):
    recording = replay.record(scenario, str(tmp_path / "recording"))
    outcome = replay.replay([recording], STATES, keep)
    record_property(TOLD, len(outcome.keys))
    assert outcome.failures == []
    assert len(outcome.images) > 30, "hardly any states were tested: does the record show what the library writes?"


@pytest.mark.parametrize("scenario", ["solo", "pushes", "turns", "flush"])
def test_a_second_cut_while_the_first_is_being_recovered_from_loses_nothing(scenario, tmp_path, keep, record_property):
    first = replay.record(scenario, str(tmp_path / "recording"), seed=1)
    recordings = replay.record_again(first, str(tmp_path / "again"), 5)
    outcome = replay.replay(recordings, STATES // 10, keep)
    record_property(TOLD, len(outcome.keys))
    assert outcome.failures == []


def _is_found(recordings: list[replay.Recording], states: int, keep: str, mutant: str = "") -> bool:
    return bool(replay.replay(recordings, states, keep, mutant, enough=1).failures)


@pytest.mark.parametrize("name", mutants.RECORDING)
def test_the_replay_finds_a_fault_in_the_calls(name, tmp_path, keep):
    def fails(seed: int) -> bool:
        recording = replay.record(mutants.RECORDING[name].scenario, str(tmp_path / f"recording {seed}"), seed, name)
        return _is_found([recording], FAULT_STATES, keep)

    assert any(fails(seed) for seed in range(TRIES))


@pytest.mark.parametrize("name", mutants.OPENING)
def test_the_replay_finds_a_fault_in_the_recovery(name, tmp_path, keep):
    recording = replay.record(mutants.OPENING[name].scenario, str(tmp_path / "recording"))
    assert _is_found([recording], 4 * FAULT_STATES, keep, name)


@pytest.mark.long
def test_after_a_cut_at_any_moment_of_many_histories_the_queue_holds(tmp_path, keep, record_property):
    done = 0
    for seed in count(1000):
        if done >= LONG_STATES:
            break
        place = tmp_path / str(seed)
        recordings = [replay.record(scenario, str(place / scenario), seed) for scenario in SCENARIOS]
        for scenario in ("solo", "pushes", "turns", "flush"):
            first = next(each for each in recordings if each.scenario == scenario)
            recordings += replay.record_again(first, str(place / f"{scenario} again"), 10, seed)
        outcome = replay.replay(recordings, min(LONG_ROUND, 1 + LONG_STATES // len(SCENARIOS)), keep)
        done += len(outcome.keys)
        assert outcome.failures == []
    record_property(TOLD, done)
