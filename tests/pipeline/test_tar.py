import contextlib
import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tar

NAMES = st.from_regex(r"[0-9]{5,90}\.(jpg|txt|json)", fullmatch=True)
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=2000)), max_size=30)


def packed(files: list[tuple[str, bytes]]) -> bytes:
    members = b"".join(part for file in files for part in tar.member(*file))
    return members + tar.end(len(members))


@given(FILES)
def test_the_bytes_are_those_that_tarfile_writes(files: list[tuple[str, bytes]]) -> None:
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert packed(files) == expected.getvalue()


@given(FILES)
def test_what_is_written_is_read(files: list[tuple[str, bytes]]) -> None:
    assert list(tar.iter_members(io.BytesIO(packed(files)))) == files


@given(FILES, st.integers(1, 5000))
def test_a_writer_puts_all_of_it_into_the_file_and_tells_its_digest(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]], size: int
) -> None:
    path = tmp_path_factory.mktemp("tar") / "written.tar"
    with pytest.MonkeyPatch.context() as patch, path.open("wb", buffering=0) as file:
        patch.setattr(tar, "WRITE_BYTES", size)
        writer = tar.Writer(file)
        for one in files:
            for part in tar.member(*one):
                writer.write(part)
        assert writer.num_bytes == sum(tar.num_bytes(len(content)) for _, content in files)
        digest = writer.close()
    assert path.read_bytes() == packed(files)
    assert digest == hashlib.sha256(packed(files)).hexdigest()


def test_a_large_file_keeps_its_size() -> None:
    info = tarfile.TarInfo("00000.jpg")
    info.size = 5_000_000_000
    assert tar.header("00000.jpg", info.size) == info.tobuf(tarfile.GNU_FORMAT)


@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError, EOFError):
        list(tar.iter_members(io.BytesIO(data)))


@given(FILES, st.data())
def test_a_cut_or_altered_tar_is_read_or_refused(
    files: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    whole = bytearray(packed(files))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(ValueError, EOFError):
        list(tar.iter_members(io.BytesIO(cut)))


def test_a_header_that_promises_gigabytes_costs_none() -> None:
    with pytest.raises(EOFError, match="breaks off"):
        list(tar.iter_members(io.BytesIO(tar.header("00000.jpg", tar.MAX_SIZE) + b"short")))


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
        *(tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE),
    ],
)
def test_what_is_no_plain_file_is_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("00000.jpg")
    info.type, info.linkname = kind, "../../etc/passwd"
    with pytest.raises(ValueError, match="not a plain file"):
        list(tar.iter_members(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT))))


@pytest.mark.parametrize(
    "name", ["../00000.jpg", "../../etc/passwd", "/etc/passwd", "a/../../00000.jpg", "a/..", ".."]
)
def test_a_name_that_leads_out_of_the_shard_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' leads out of the shard"):
        list(tar.iter_members(io.BytesIO(packed([(name, b"")]))))


@pytest.mark.parametrize("name", ["00000..jpg", "..00000.jpg", "a/00000.jpg", "a../00000.jpg"])
def test_dots_alone_lead_nowhere(name: str) -> None:
    assert list(tar.iter_members(io.BytesIO(packed([(name, b"a")])))) == [(name, b"a")]
