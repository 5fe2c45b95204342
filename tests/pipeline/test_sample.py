import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.sample import Sample, pack_sample, rekey, unpack_sample

FLAT = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
NESTED = FLAT | st.lists(FLAT, max_size=3) | st.dictionaries(st.text(), FLAT, max_size=2)
NAMES = st.sampled_from(["key", "weight", "source_key", "width", "a", "a b", "a!"]) | st.text()
NEW: dict[str, Any] = {"key": "000020001", "source_key": "000010003", "weight": 0.5}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"url": 'a "quoted" line\n, "x": [1]', "width": 3, "score": 0.1, "exif": None, "ok": True},
        {"nested": {"b": [1, 2], "a": {}}, "text": "é猫"},
    ],
)
def test_metadata_is_written_as_img2dataset_writes_it(metadata: dict[str, Any]) -> None:
    members = pack_sample(Sample("000000000", "0", "", b"", "jpg", metadata)).members
    expected = json.dumps(metadata, indent=4, ensure_ascii=False, sort_keys=True).encode()
    assert members.rstrip(b"\0").endswith(b"\0" + expected)


@given(st.dictionaries(NAMES, NESTED, max_size=6), st.text(), st.binary(max_size=1030))
@example({"a": 1, "a b": 2, "a!": 3, 'quoted": ': 4}, 'say "no": it', b"")
@example({"list": [1], "empty": [], "object": {}}, "", bytes(512))
def test_a_sample_rekeyed_in_its_tar_is_the_one_that_is_packed_again(
    metadata: dict[str, Any], caption: str, image: bytes
) -> None:
    metadata |= {"key": "000010003", "uid": "0"}
    members = pack_sample(Sample("000010003", "0", caption, image, "png", metadata)).members
    old = unpack_sample(members)
    again = pack_sample(replace(old, key=NEW["key"], metadata=old.metadata | NEW))
    found = rekey(members, NEW)
    if found is not None:
        assert (found.key, found.image_size) == (again.key, again.image_size)
        assert found.members == again.members


def test_a_row_of_numbers_and_words_is_rekeyed_without_unpacking_it() -> None:
    metadata = {"key": "000010003", "uid": "0", "caption": 'a "cat",\nasleep', "width": 3, "f": 0.1}
    members = pack_sample(Sample("000010003", "0", "a cat", b"image", "jpg", metadata)).members
    packed = rekey(members, NEW)
    assert packed is not None
    assert unpack_sample(packed.members).metadata == metadata | NEW


def test_a_sample_whose_members_lie_in_another_order_is_not_rekeyed() -> None:
    sample = Sample("000010003", "0", "a cat", b"image", "jpg", {"key": "000010003", "uid": "0"})
    members = pack_sample(sample).members
    assert rekey(members[1024:] + members[:1024], NEW) is None
    assert rekey(members[:1024], NEW) is None


@pytest.mark.parametrize("extension", ["jpg/../../x", "/x"])
def test_a_name_that_leads_elsewhere_is_not_taken_along(extension: str) -> None:
    metadata = {"key": "000010003", "uid": "0"}
    members = pack_sample(Sample("000010003", "0", "", b"", extension, metadata)).members
    assert rekey(members, NEW) is None
