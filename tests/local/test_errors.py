"""Every exception that lmdbqueue raises on purpose: its facts, its sentence, its way through a pipe."""

import copy
import inspect
import pickle

import pytest

import lmdbqueue
from lmdbqueue import (
    AccessError,
    ClosedError,
    CommitUnknownError,
    CorruptItemError,
    CorruptQueueError,
    DecodeError,
    DiskFullError,
    Empty,
    ExistsError,
    ForkError,
    FormatError,
    ForwardError,
    Full,
    GoneError,
    LeaseExpiredError,
    NestedCallError,
    OptionError,
    PidError,
    QueueError,
    ServerError,
    ShutDown,
    SourceError,
    StorageError,
    TransactionError,
    VersionError,
)

# a class, the facts of a sample, and what its sentence must show of them
SAMPLES = {
    AccessError: (("/q", "opening '/q': Permission denied"), ["'/q'", "Permission denied"]),
    ClosedError: (("/q",), ["'/q'"]),
    PidError: (("/q", "Resource temporarily unavailable"), ["'/q'", "pid", "Resource temporarily unavailable"]),
    CommitUnknownError: (("/q", "commit", "I/O error", "look"), ["'/q'", "commit", "I/O error"]),
    CorruptItemError: ((7, b"x" * 1234), ["7", "1,234 bytes"]),
    CorruptQueueError: (("/q", "no queue.json"), ["'/q'", "no queue.json"]),
    DecodeError: ((7, b"x" * 1234, "EOFError: ran out", False), ["7", "1,234 bytes", "EOFError: ran out"]),
    DiskFullError: (("bytes", 1_000_000, 999_999, 4096), ["999,999", "1,000,000"]),
    Empty: ((3, 0.25), ["3 items", "0.25 s"]),
    ExistsError: (("/q",), ["'/q'"]),
    ForkError: (("/q",), ["'/q'"]),
    GoneError: (("/q", "jobs", ""), ["'/q'", "'jobs'", "open the queue again"]),
    FormatError: (("/q", "a file", "choose another name"), ["'/q'", "a file", "choose another name"]),
    ForwardError: (("/q", "it is older", "look"), ["'/q'", "it is older", "look"]),
    Full: (("items", 1000, 999, 2), ["999", "1,000", "items", "2 more"]),
    NestedCallError: (("/q",), ["'/q'", "same thread"]),
    LeaseExpiredError: (("jobs", [7, 8]), ["'jobs'", "items 7, 8", "longer ttl"]),
    OptionError: (
        ("/q", "serializer", "json", "pickle", "jobs"),
        ["queue 'jobs' in '/q'", "serializer='json'", "'pickle'"],
    ),
    QueueError: ((), []),
    ServerError: (("/q", "a push", "it stops", "57P01"), ["'/q'", "a push", "it stops", "57P01"]),
    ShutDown: ((), ["shut down"]),
    SourceError: (
        ("/old", "it is a dict", "read it"),
        ["'/old'", "a dict", "read it", "nothing was imported"],
    ),
    StorageError: (("/q", "reading", "I/O error", "look"), ["look", "'/q'", "reading", "I/O error"]),
    TransactionError: (("/q", "it would wait", "do not"), ["'/q'", "it would wait", "do not"]),
    VersionError: (("/q", "format 2", "upgrade"), ["'/q'", "format 2", "upgrade"]),
}
PUBLIC = [
    each
    for each in (getattr(lmdbqueue, name) for name in lmdbqueue.__all__)
    if isinstance(each, type) and issubclass(each, BaseException)
]


def _sample(cls):
    return cls(*SAMPLES[cls][0])


def test_every_public_exception_has_a_sample_here():
    assert set(PUBLIC) == set(SAMPLES)


def test_every_exception_of_the_errors_module_is_public():
    defined = {
        each for each in vars(lmdbqueue._base.errors).values() if inspect.isclass(each) and issubclass(each, QueueError)
    }
    assert defined == set(PUBLIC)


@pytest.mark.parametrize("cls", PUBLIC)
def test_it_derives_from_the_common_base(cls):
    assert issubclass(cls, QueueError)
    assert issubclass(QueueError, Exception)


@pytest.mark.parametrize("cls", PUBLIC)
def test_its_attributes_and_args_are_its_facts(cls):
    error, facts = _sample(cls), SAMPLES[cls][0]
    assert error.args == facts
    names = [name for name in inspect.signature(cls).parameters if name not in {"args", "kwargs"}] if facts else []
    assert [getattr(error, name) for name in names] == list(facts)
    assert vars(error) == dict(zip(names, facts, strict=True))


@pytest.mark.parametrize("cls", PUBLIC)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_comes_through_a_pickle_as_it_was(cls, protocol):
    error = _sample(cls)
    twin = pickle.loads(pickle.dumps(error, protocol))
    assert type(twin) is cls
    assert (vars(twin), twin.args, str(twin), repr(twin)) == (vars(error), error.args, str(error), repr(error))


@pytest.mark.parametrize("cls", PUBLIC)
def test_it_can_be_copied(cls):
    error = _sample(cls)
    assert str(copy.copy(error)) == str(error)
    assert vars(copy.deepcopy(error)) == vars(error)


@pytest.mark.parametrize("cls", PUBLIC)
def test_its_sentence_shows_the_facts(cls):
    text = str(_sample(cls))
    assert [fact for fact in SAMPLES[cls][1] if fact not in text] == []


@pytest.mark.parametrize("cls", [cls for cls in PUBLIC if cls is not QueueError])
def test_its_sentence_begins_without_a_capital_is_one_line_and_ends_without_a_stop(cls):
    text = str(_sample(cls))
    assert text
    assert text[0] == text[0].lower()
    assert "\n" not in text
    assert not text.endswith(".")


def test_the_sentence_of_empty_fits_one_item_and_no_timeout():
    assert str(Empty(1)) == "there was no item"
    assert str(Empty(1, 2.0)) == "there was no item within 2 s"
    assert str(Empty(5)) == "there were fewer than 5 items"


def test_what_means_the_same_in_python_is_of_pythons_class_too():
    assert issubclass(OptionError, ValueError)
    assert issubclass(VersionError, FormatError)
    assert issubclass(CommitUnknownError, StorageError)
    assert issubclass(DiskFullError, Full)


def test_an_error_raised_by_a_queue_comes_through_a_pickle(open_queue):
    queue = open_queue(dumps=bytes, loads=lambda payload: payload.decode("ascii"), maxsize=1)
    queue.push(b"\xff")
    caught = []
    for call in (queue.pop, lambda: queue.push(b"b"), queue.close, queue.pop):
        try:
            call()
        except QueueError as error:
            caught.append(error)
    assert [type(error) for error in caught] == [DecodeError, Full, ClosedError]
    assert [str(pickle.loads(pickle.dumps(error))) for error in caught] == [str(error) for error in caught]
