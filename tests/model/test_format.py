"""What the bytes on disk mean: numbers, names, seals, ``queue.json``."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdbqueue import CorruptQueueError, VersionError
from lmdbqueue import _format as fmt

numbers = st.integers(0, (1 << 64) - 1)
names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=50)
WRITTEN = {"format": 1, "checksum": True, "durability": "full", "uuid": "0123456789abcdef0123456789abcdef"}


def flipped(data, bit):
    """Return ``data`` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- numbers


@given(numbers)
def test_number_comes_back_from_its_8_bytes(number):
    assert len(fmt.pack(number)) == 8
    assert fmt.unpack(fmt.pack(number)) == number


@given(numbers, numbers)
def test_order_of_packed_numbers_is_the_order_of_numbers(one, other):
    assert (fmt.pack(one) < fmt.pack(other)) == (one < other)


def test_number_is_stored_big_endian():
    assert fmt.pack(0x0102030405060708) == bytes([1, 2, 3, 4, 5, 6, 7, 8])


# --- seals


def test_seal_is_the_checksum_over_key_and_payload_little_endian_behind_the_payload():
    # b"123456789" is the string that every description of CRC-32 gives the checksum 0xCBF43926 of
    assert fmt.seal(b"12345678", b"9") == b"9" + bytes([0x26, 0x39, 0xF4, 0xCB])


@given(numbers, st.binary(max_size=5_000))
def test_sealed_payload_is_intact_under_its_key(number, payload):
    value = fmt.seal(fmt.pack(number), payload)
    assert value[: -fmt.SEAL_SIZE] == payload
    assert fmt.is_intact(fmt.pack(number), value)


@settings(max_examples=50)
@given(numbers, st.binary(max_size=100))
def test_each_flipped_bit_of_a_value_is_detected(number, payload):
    key = fmt.pack(number)
    value = fmt.seal(key, payload)
    assert [bit for bit in range(len(value) * 8) if fmt.is_intact(key, flipped(value, bit))] == []


@given(numbers, st.binary(max_size=100))
def test_each_flipped_bit_of_a_key_is_detected(number, payload):
    key = fmt.pack(number)
    value = fmt.seal(key, payload)
    assert [bit for bit in range(len(key) * 8) if fmt.is_intact(flipped(key, bit), value)] == []


@given(numbers, st.binary(min_size=1, max_size=20), st.integers(500, 5_000), st.data())
def test_flipped_bit_of_a_long_value_is_detected(number, pattern, times, data):
    key = fmt.pack(number)
    value = fmt.seal(key, pattern * times)
    bit = data.draw(st.integers(0, len(value) * 8 - 1))
    assert not fmt.is_intact(key, flipped(value, bit))


@given(numbers, numbers, st.binary(max_size=100))
def test_value_is_intact_under_no_neighbouring_key(number, distance, payload):
    # Two keys that differ within 32 bits in a row never share a checksum, so this is certain, not likely.
    other = number ^ (distance & 0xFFFF_FFFF)
    assert fmt.is_intact(fmt.pack(other), fmt.seal(fmt.pack(number), payload)) == (other == number)


# --- names


@given(names)
def test_name_of_a_queue_comes_back_from_the_key_of_its_items(name):
    assert fmt.check_name(name) == name
    assert fmt.queue_of(fmt.record(name, "items")) == name


@given(names, names)
def test_queues_of_different_names_share_no_record(one, other):
    def keys(name):
        return {fmt.record(name, what) for what in ("items", "head", "tail")}

    assert keys(one).isdisjoint(keys(other)) == (one != other)
    assert keys(one).isdisjoint({fmt.META, fmt.LAST_TXN, fmt.NEXT_GENERATION})


@pytest.mark.parametrize("key", [fmt.META, fmt.NEXT_GENERATION, b"jobs/head", b"jobs/tail", b"items", b"jobs/items/x"])
def test_key_that_is_not_of_items_belongs_to_no_queue(key):
    assert fmt.queue_of(key) is None


@pytest.mark.parametrize("name", ["", "a/b", "/", "a\0", "\0", "x" * 201, "\u00fc" * 101, "\ud800"])
def test_name_that_cannot_be_a_key_is_refused(name):
    with pytest.raises(ValueError):  # noqa: PT011  (a lone surrogate has an error of its own below ValueError)
        fmt.check_name(name)


@pytest.mark.parametrize("name", ["x" * 200, "\u00fc" * 100, ".", "..", "meta", "next", "two words", "line\nbreak"])
def test_name_of_up_to_200_bytes_is_taken(name):
    assert fmt.check_name(name) == name


# --- queue.json


@given(st.booleans(), st.sampled_from(["full", "off"]), st.uuids())
def test_options_come_back_from_json(checksum, durability, uuid):
    options = fmt.Options(checksum, durability, uuid.hex)
    assert fmt.Options.from_json("q", options.to_json()) == options


def test_two_directories_get_different_uuids():
    assert fmt.Options().to_json() != fmt.Options().to_json()


def test_written_json_of_format_1_is_read():
    read = fmt.Options.from_json("q", json.dumps(WRITTEN).encode())
    assert read == fmt.Options(checksum=True, durability="full", uuid=WRITTEN["uuid"])
    assert json.loads(read.to_json()) == WRITTEN


@pytest.mark.parametrize("version", [2, 3, 1 << 70])
def test_newer_version_is_refused_whatever_else_it_says(version):
    text = json.dumps({**WRITTEN, "format": version, "durability": "group", "pages": 7}).encode()
    with pytest.raises(VersionError) as caught:
        fmt.Options.from_json("some/queue", text)
    assert caught.value.path == "some/queue"
    assert f"format {version}" in caught.value.found


@pytest.mark.parametrize(
    "change",
    [
        {"format": 0},
        {"format": -1},
        {"format": "1"},
        {"format": "2"},
        {"format": None},
        {"format": [1]},
        {"checksum": 1},
        {"checksum": None},
        {"checksum": "true"},
        {"durability": "half"},
        {"durability": None},
        {"durability": ["full"]},
        {"uuid": "0123"},
        {"uuid": WRITTEN["uuid"] + "00"},
        {"uuid": "g" * 32},
        {"uuid": 7},
        {"pages": 7},
    ],
    ids=str,
)
def test_value_that_no_version_has_written_is_refused(change):
    with pytest.raises(CorruptQueueError) as caught:
        fmt.Options.from_json("some/queue", json.dumps({**WRITTEN, **change}).encode())
    assert caught.value.path == "some/queue"


@pytest.mark.parametrize("missing", list(WRITTEN))
def test_missing_value_is_refused(missing):
    text = json.dumps({key: value for key, value in WRITTEN.items() if key != missing}).encode()
    with pytest.raises(CorruptQueueError):
        fmt.Options.from_json("q", text)


@pytest.mark.parametrize(
    "text",
    [b"", b"\0" * 100, b"{", b"5", b"null", b"[]", b'["format"]', b'"format"', b"{}", b"\xff\xfe", b"1" * 5_000],
    ids=lambda text: repr(text[:10]),
)
def test_text_that_is_no_options_is_refused(text):
    with pytest.raises(CorruptQueueError):
        fmt.Options.from_json("q", text)


def test_deeply_nested_text_is_refused():
    with pytest.raises(CorruptQueueError):
        fmt.Options.from_json("q", b"[" * 200_000)


@given(st.binary(max_size=200))
def test_garbage_is_refused(text):
    with pytest.raises(CorruptQueueError):
        fmt.Options.from_json("q", text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*WRITTEN, "other"]), json_values))
def test_any_json_is_read_as_options_or_refused(changes):
    stored = WRITTEN | changes
    try:
        options = fmt.Options.from_json("q", json.dumps(stored).encode())
    except CorruptQueueError:
        return
    assert json.loads(options.to_json()) == stored


@given(st.data())
def test_every_truncation_is_refused(data):
    text = fmt.Options().to_json()
    length = data.draw(st.integers(0, len(text) - 2))  # without its last newline it is whole
    with pytest.raises(CorruptQueueError):
        fmt.Options.from_json("q", text[:length])
