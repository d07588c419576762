"""What the bytes on disk mean: numbers, keys, records, trailers, seals, weights, names, ``queue.json``."""

import json
from itertools import pairwise
from struct import pack as struct_pack
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdbqueue import CorruptQueueError, VersionError
from lmdbqueue._base import format as fmt

numbers = st.integers(0, (1 << 64) - 1)
seqs = st.integers(0, (1 << 56) - 1)
times = st.integers(0, (1 << 63) - 1)
salts = st.integers(0, (1 << 32) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
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


@given(numbers, st.integers(0, 3))
def test_keys_of_successive_numbers_are_those_of_each(start, n):
    given = range(start, min(start + n, 1 << 64))
    assert fmt.keys_of(given) == list(map(fmt.pack, given))


@given(numbers, numbers)
def test_order_of_packed_numbers_is_the_order_of_numbers(one, other):
    assert (fmt.pack(one) < fmt.pack(other)) == (one < other)


def test_number_is_stored_big_endian():
    assert fmt.pack(0x0102030405060708) == bytes([1, 2, 3, 4, 5, 6, 7, 8])


# --- keys of items


@given(seqs)
def test_number_that_users_see_comes_back_from_the_key_of_an_item_without_a_priority(seq):
    key = fmt.key_of(seq)
    assert len(key) == fmt.KEY_SIZE == 8
    assert fmt.seq_of(key) == seq
    assert fmt.class_of_key(key) == fmt.CLASS == 128
    assert fmt.first_of(fmt.unpack(key)) == fmt.BASE


def test_key_is_the_class_and_seven_bytes_of_number_big_endian():
    assert fmt.key_of(0x0203040506) == bytes([128, 0, 0, 2, 3, 4, 5, 6])


@given(st.sampled_from(fmt.PRIORITIES), st.sampled_from(fmt.PRIORITIES), seqs, seqs)
def test_order_of_keys_is_that_of_priorities_and_then_of_numbers(one, other, first, second):
    keys = [fmt.pack(fmt.Bounds.empty(fmt.class_of(each)).tail + seq) for each, seq in ((one, first), (other, second))]
    assert (keys[0] < keys[1]) == ((one, first) < (other, second))
    assert [fmt.class_of_key(key) - fmt.CLASS for key in keys] == [one, other]
    assert (fmt.seq_of(keys[0]) < fmt.seq_of(keys[1])) == ((one, first) < (other, second))


def test_priorities_are_all_that_a_byte_has_and_0_is_none_given():
    assert [fmt.class_of(each) for each in (-128, 0, 127)] == [0, fmt.CLASS, 255]
    assert (fmt.PRIORITIES.start, fmt.PRIORITIES.stop) == (-128, 128)


# --- the record of a queue, of a class, of a directory

fields = st.tuples(*[numbers] * 15)


@given(numbers, texts.filter(lambda name: len(name.encode()) < 256), salts, fields)
def test_record_of_a_queue_tells_what_was_put_into_it(number, name, salt, values):
    new = fmt.new_queue(number, name, salt)
    assert fmt.numbers(new) == fmt.Numbers(tokens=number % (1 << 24) << 40)
    changed = fmt.with_flags(fmt.with_numbers(new, fmt.Numbers(*values)), fmt.READERS | fmt.RETAINED)
    assert fmt.numbers(changed) == values
    assert fmt.flags(changed) == fmt.READERS | fmt.RETAINED
    assert fmt.serializer(changed) == name
    assert fmt.salt(changed) == salt
    assert fmt.identity(changed) == salt.to_bytes(4, "big") + number.to_bytes(8, "big")


def test_record_of_a_new_queue_byte_by_byte():
    base, nothing = bytes([128, 0, 0, 0, 0, 0, 0, 0]), bytes(8)
    assert fmt.new_queue(2, "json", 0x01020304) == b"".join(
        (
            bytes([1, 0, 4, 136]),  # version, flags, length and place of the serializer's name
            bytes([1, 2, 3, 4]),  # salt
            bytes([0, 0, 0, 0, 0, 0, 0, 2]),  # the second queue of its directory
            base,  # head
            base,  # tail
            nothing * 10,  # skipped, its weight, returned, its weight, leased, delayed, noted, keys, expiring, dead
            bytes([0, 0, 2, 0, 0, 0, 0, 0]),  # tokens
            nothing * 2,  # dropped, expired
            b"json",
        )
    )


@given(fields, texts.filter(lambda name: len(name.encode()) < 256))
def test_longer_record_of_a_later_version_is_read_and_what_is_not_known_in_it_is_kept(values, name):
    ours = fmt.with_numbers(fmt.new_queue(7, "", 9), fmt.Numbers(*values))
    data = name.encode()
    later = bytes([2, 0, len(data), len(ours) + 16]) + ours[4:] + b"what comes later" + data
    assert fmt.numbers(later) == values
    assert fmt.serializer(later) == name
    assert fmt.with_numbers(later, fmt.Numbers()) == later[:16] + struct_pack(">15Q", *fmt.Numbers()) + later[136:]


@given(numbers, numbers)
def test_a_plain_queue_is_one_with_only_head_tail_tokens_and_figures(head, tail):
    new = fmt.new_queue(1, "pickle", 5)
    plain = fmt.Numbers(head=head, tail=tail, tokens=3, dropped=4, expired=5)
    assert fmt.is_plain(fmt.with_numbers(new, plain))
    for field in set(fmt.Numbers._fields) - {"head", "tail", "tokens", "dropped", "expired", "dead"}:
        assert not fmt.is_plain(fmt.with_numbers(new, plain._replace(**{field: 1})))
    for flag in (fmt.READERS, fmt.RETAINED, fmt.CLASSES, fmt.SIZED):
        assert not fmt.is_plain(fmt.with_flags(new, flag))


@given(st.tuples(*[numbers] * 6))
def test_bounds_come_back_from_the_record_of_a_class_also_from_a_longer_one(values):
    bounds = fmt.Bounds(*values)
    assert fmt.Bounds.unpack(bounds.pack()) == fmt.Bounds.unpack(bounds.pack() + b"later") == bounds
    assert bounds.pack()[:1] == b"\1"
    assert fmt.Numbers(dead=3).bounded(bounds) == (*values, *fmt.Numbers(dead=3)[6:])
    assert fmt.Numbers().bounded(bounds).bounds() == bounds


@given(numbers)
def test_count_of_queues_comes_back_from_the_record_of_a_directory(n):
    assert fmt.Directory.unpack(fmt.Directory(n).pack()).queues == n
    assert fmt.Directory.unpack(fmt.Directory(n).pack() + b"later").queues == n
    assert fmt.Directory.unpack(None) == fmt.Directory(0)


# --- notes, readers, retention, ranges

notes = st.builds(
    fmt.Note,
    attempts=st.integers(0, (1 << 32) - 1),
    due=numbers,
    time=numbers,
    expires=numbers,
    unique=st.just(b"") | st.binary(min_size=16, max_size=16).filter(lambda digest: digest.strip(b"\0")),
    reason=texts,
    trace=texts,
)


@given(notes, st.binary(max_size=30), st.integers(0, 9))
def test_note_comes_back_and_what_stands_behind_it(note, behind, at):
    assert fmt.Note.unpack(bytes(at) + note.pack() + behind, at) == (note, behind)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=400, max_size=3_000))
def test_what_is_too_long_for_a_note_is_cut_between_characters(text):
    note, behind = fmt.Note.unpack(fmt.Note(reason=text, trace=text * 3).pack() + b"item")
    assert behind == b"item"
    assert text.startswith(note.reason)
    assert (text * 3).startswith(note.trace)
    assert 1_000 - 3 <= len(note.reason.encode()) <= 1_000 or note.reason == text
    assert len(note.trace.encode()) <= 8_000


@given(st.binary(min_size=8, max_size=8), numbers, numbers)
def test_position_of_a_reader_comes_back_from_its_record_also_from_a_longer_one(passed, skipped, seen):
    position = fmt.Position(passed, skipped, seen)
    assert fmt.Position.unpack(position.pack()) == fmt.Position.unpack(position.pack() + b"later") == position


limits = st.none() | st.integers(0, (1 << 64) - 2)


@given(limits, limits, limits, numbers)
def test_what_is_retained_comes_back_from_its_record(items, size, age, held):
    retention = fmt.Retention(items, size, age)
    assert fmt.Retention.unpack(retention.pack(held)) == fmt.Retention.unpack(retention.pack(held) + b"later")
    assert fmt.Retention.unpack(retention.pack(held)) == (retention, held)


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_just_the_numbers_that_they_were_made_of_and_none_touches_the_next(numbers):
    ranges = fmt.ranges(sorted(numbers))
    assert [number for each in ranges for number in each] == sorted(numbers)
    assert all(one.stop < other.start for one, other in pairwise(ranges))
    assert fmt.unpack_ranges(fmt.pack_ranges(ranges)) == ranges


@given(numbers, numbers, numbers)
def test_record_of_the_last_transaction_comes_back_with_weights_or_without(transaction, weight, content):
    assert fmt.Last.unpack(fmt.pack_last(transaction, weight, content)) == (transaction, weight, content)
    assert fmt.Last.unpack(fmt.pack_last(transaction, weight)) == (transaction, weight, None)
    assert fmt.Last.unpack(fmt.pack_last(transaction)) == (transaction, None, None)
    assert fmt.Last.unpack(None).transaction == -1
    assert len(fmt.pack_last(transaction, weight, content + (1 << 64))) == 24


# --- trailers

headers = st.dictionaries(texts, texts, max_size=4)


@given(st.binary(max_size=200), times, numbers, headers)
def test_trailer_comes_back_and_leaves_the_payload(payload, pushed_at, expires, headers):
    trailer = fmt.Trailer(pushed_at, expires, headers)
    assert fmt.Trailer.of(payload + trailer.pack()) == (trailer, len(payload))
    assert (len(trailer.pack()) == fmt.TRAILER == 8) == (not expires and not headers)


def test_trailer_byte_by_byte():
    assert fmt.Trailer(0x0102030405060708).pack() == bytes([1, 2, 3, 4, 5, 6, 7, 8])
    assert fmt.Trailer(5, 9, {"ab": "é"}).pack() == b"".join(
        (
            bytes([0, 0, 0, 0, 0, 0, 0, 9]),  # expires
            bytes([0, 2]) + b"ab" + bytes([0, 2, 0xC3, 0xA9]),
            bytes([0, 0, 0, 16]),  # bytes of these
            bytes([0x80, 0, 0, 0, 0, 0, 0, 5]),
        )
    )


def test_headers_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="at most 65,535"):
        fmt.Trailer(1, headers={str(number): "x" * 10_000 for number in range(7)}).pack()


trailers = st.builds(fmt.Trailer, times, numbers, headers)


@given(st.lists(st.tuples(st.binary(max_size=50), trailers), max_size=6), st.booleans(), salts)
def test_payloads_of_many_items_are_those_that_were_pushed(items, sealed, salt):
    keys = [fmt.key_of(seq) for seq in range(len(items))]
    values = [payload + trailer.pack() for payload, trailer in items]
    if sealed:
        values, _ = fmt.seal_all(keys, values, salt)
    assert fmt.payloads(values, sealed=sealed) == [payload for payload, _ in items]
    found = [fmt.Trailer.of(body)[0] for body in fmt.bodies(values, sealed=sealed)]
    assert found == [trailer for _, trailer in items]


# --- seals


def test_seal_is_the_checksum_over_key_and_what_is_stored_little_endian_behind_it():
    # b"123456789" is the string that every description of CRC-32 gives the checksum 0xCBF43926 of
    assert fmt.seal(b"12345678", b"9") == b"9" + bytes([0x26, 0x39, 0xF4, 0xCB])
    assert fmt.seal(b"3456", b"789", crc32(b"12")) == b"789" + bytes([0x26, 0x39, 0xF4, 0xCB])


@given(numbers, st.binary(max_size=5_000), salts)
def test_sealed_value_is_intact_under_its_key(number, data, salt):
    value = fmt.seal(fmt.pack(number), data, salt)
    assert value[: -fmt.SEAL_SIZE] == data
    assert fmt.is_intact(fmt.pack(number), value, salt)


@settings(max_examples=50)
@given(numbers, st.binary(max_size=100), salts)
def test_each_flipped_bit_of_a_value_is_detected(number, data, salt):
    key = fmt.pack(number)
    value = fmt.seal(key, data, salt)
    assert [bit for bit in range(len(value) * 8) if fmt.is_intact(key, flipped(value, bit), salt)] == []


@given(numbers, st.binary(max_size=100), salts)
def test_each_flipped_bit_of_a_key_is_detected(number, data, salt):
    key = fmt.pack(number)
    value = fmt.seal(key, data, salt)
    assert [bit for bit in range(len(key) * 8) if fmt.is_intact(flipped(key, bit), value, salt)] == []


@given(numbers, st.binary(min_size=1, max_size=20), st.integers(500, 5_000), st.data())
def test_flipped_bit_of_a_long_value_is_detected(number, pattern, times, data):
    key = fmt.pack(number)
    value = fmt.seal(key, pattern * times)
    bit = data.draw(st.integers(0, len(value) * 8 - 1))
    assert not fmt.is_intact(key, flipped(value, bit))


@given(numbers, numbers, st.binary(max_size=100))
def test_value_is_intact_under_no_neighbouring_key(number, distance, data):
    # Two keys that differ within 32 bits in a row never share a checksum, so this is certain, not likely.
    other = number ^ (distance & 0xFFFF_FFFF)
    assert fmt.is_intact(fmt.pack(other), fmt.seal(fmt.pack(number), data)) == (other == number)


@given(numbers, st.binary(max_size=100), salts, salts)
def test_item_of_a_queue_with_another_salt_is_never_intact(number, data, one, other):
    key = fmt.pack(number)
    assert fmt.is_intact(key, fmt.seal(key, data, one), other) == (one == other)


@given(st.lists(st.binary(max_size=30), max_size=6), salts, st.data())
def test_many_are_sealed_and_proven_as_one_by_one(data, salt, draw):
    keys = [fmt.key_of(seq) for seq in range(len(data))]
    values, weight = fmt.seal_all(keys, data, salt)
    assert values == [fmt.seal(key, each, salt) for key, each in zip(keys, data, strict=True)]
    assert weight == sum(map(fmt.weigh_item, values))
    assert fmt.are_intact(keys, values, salt)
    if values:
        damaged = draw.draw(st.integers(0, len(values) - 1))
        values[damaged] = flipped(values[damaged], draw.draw(st.integers(0, 8 * len(values[damaged]) - 1)))
        assert not fmt.are_intact(keys, values, salt)


# --- weights


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_weight_of_a_record_is_the_square_of_a_checksum_and_that_of_a_sealed_one_stands_in_its_seal(key, value):
    assert fmt.weigh(key, value) == crc32(key + value) ** 2
    assert fmt.weigh_item(fmt.seal(key, value)) == crc32(key + value) ** 2
    before = int.from_bytes(value[-4:], "little") ** 2 if len(value) >= 4 else 0
    assert fmt.weigh_sealed(fmt.seal(key, value)) == crc32(key + value) ** 2 + before
    assert fmt.weigh_item(b"abc") == fmt.weigh_sealed(b"abc") == 0


@given(numbers, st.binary(max_size=30), st.binary(max_size=30), st.binary(min_size=8, max_size=8), salts)
def test_the_weight_of_a_record_with_an_item_tells_one_item_from_another(number, note, payload, pushed_at, salt):
    key = fmt.pack(number)
    one, other = (fmt.seal(key, each + pushed_at, salt) for each in (b"a" + payload, b"b" + payload))
    weights = {fmt.weigh_sealed(fmt.seal(b"queue/leased/" + key, note + each)) for each in (one, other)}
    assert len(weights) == 2


@pytest.mark.parametrize(
    ("is_away", "key", "is_weighed"),
    [
        (False, b"txn", False),
        (False, b"directory", True),
        (False, b"jobs/queue", True),
        (False, b"jobs/class/007", True),
        (False, b"jobs/state/total", True),
        (False, b"jobs/reader/audit", True),
        (False, b"jobs/retain", True),
        (True, b"jobs/lease/12345678", True),
        (True, b"jobs/note/12345678", True),
        (True, b"jobs/owner/1234567812345678", True),
        (True, b"jobs/expiry/1234567812345678", True),
        (True, b"jobs/expires/1234567812345678", True),
        (True, b"jobs/passed/12345678audit", True),
    ],
)
def test_all_records_are_weighed_but_that_of_the_transaction(is_away, key, is_weighed):
    value = fmt.seal(key, b"value") if fmt.is_sealed(is_away, key) else b"value"
    expected = crc32(key + b"value") ** 2 if is_weighed else 0
    if fmt.is_sealed(is_away, key):
        expected += int.from_bytes(b"alue", "little") ** 2
    assert fmt.weigh_in(is_away, key, value) == expected


# --- names


@given(names)
def test_name_of_a_queue_comes_back_from_the_key_of_its_items(name):
    assert fmt.check_name(name) == name
    assert fmt.queue_of(fmt.record(name, "items")) == name


@given(names, names)
def test_queues_of_different_names_share_no_record(one, other):
    def keys(name):
        return {fmt.record(name, what) for what in ("items", "queue", "retain")}

    assert keys(one).isdisjoint(keys(other)) == (one != other)
    assert keys(one).isdisjoint({fmt.META, fmt.AWAY, fmt.LAST_TXN, fmt.DIRECTORY, fmt.NEXT_GENERATION})


@pytest.mark.parametrize(
    "key", [fmt.META, fmt.NEXT_GENERATION, b"jobs/queue", b"jobs/class/007", b"items", b"jobs/items/x"]
)
def test_key_that_is_not_of_items_belongs_to_no_queue(key):
    assert fmt.queue_of(key) is None


@pytest.mark.parametrize("name", ["", "a/b", "/", "a\0", "\0", "x" * 201, "\u00fc" * 101, "\ud800"])
def test_name_that_cannot_be_a_key_is_refused(name):
    with pytest.raises(ValueError):  # noqa: PT011  (a lone surrogate has an error of its own below ValueError)
        fmt.check_name(name)


@pytest.mark.parametrize("name", ["x" * 200, "\u00fc" * 100, ".", "..", "meta", "next", "two words", "line\nbreak"])
def test_name_of_up_to_200_bytes_is_taken(name):
    assert fmt.check_name(name) == name


@given(st.binary(max_size=30), st.integers(0, 1 << 62), st.dictionaries(st.text(max_size=9), st.text()), st.booleans())
def test_the_size_of_a_payload_is_that_of_nothing_beside_it(payload, expires, headers, sealed):
    body = payload + fmt.Trailer(7, expires, headers).pack()
    value = fmt.seal(b"key", body) if sealed else body
    assert fmt.payload_size(value, sealed=sealed) == len(payload)


@given(st.binary(max_size=40), st.booleans())
def test_the_size_of_a_damaged_item_is_some_number(value, sealed):
    assert 0 <= fmt.payload_size(value, sealed=sealed) <= len(value)


# --- queue.json


@given(st.booleans(), st.sampled_from(["full", "off"]), st.uuids())
def test_options_come_back_from_json(checksum, durability, uuid):
    options = fmt.Options(checksum, durability, uuid.hex)
    assert fmt.Options.from_json("q", options.to_json()) == options


def test_two_directories_get_different_uuids():
    assert fmt.Options().named().uuid != fmt.Options().named().uuid


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
