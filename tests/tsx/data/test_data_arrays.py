"""npy, npz and npy.gz: orders, dtypes, and headers that lie."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest

from tsx.data import arrays as arrays_module
from tsx.data import parsed as parsed_module
from tsx.errors import DataError

pytestmark = pytest.mark.trainer

TABLE = np.arange(12.0).reshape(3, 4)


def to_npy(array, **keys):
    file = io.BytesIO()
    np.save(file, array, **keys)
    return file.getvalue()


def to_npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def forge(shape, data=b"", dtype="<f8", order="False"):
    """Return an npy file whose header says what it likes."""
    header = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}}}".encode()
    header += b" " * (118 - len(header) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def pack(name, content):
    return gzip.compress(content) if name.endswith(".gz") else content


@pytest.mark.parametrize("name", ["a.npy", "a.npy.gz"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", "<f2", ">i2", "u1", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_series(open_file, read, name, dtype, order):
    table = np.array(TABLE, dtype, order=order)
    assert read(open_file(name, pack(name, to_npy(table)))) == TABLE.tolist()


@pytest.mark.parametrize("name", ["a.npy", "a.npy.gz"])
def test_one_dimension_is_one_series(open_file, read, name):
    assert read(open_file(name, pack(name, to_npy(TABLE[0])))) == [TABLE[0].tolist()]


@pytest.mark.parametrize("piece", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces_of_any_size_give_the_same(open_file, read, monkeypatch, piece, order):
    monkeypatch.setattr(arrays_module, "PIECE_POINTS", piece)
    content = gzip.compress(to_npy(np.array(TABLE, order=order)))
    assert read(open_file("a.npy.gz", content)) == TABLE.tolist()


def test_npz_is_array_after_array(open_file, read):
    content = to_npz(b=TABLE, a=np.array([1, 2], ">i4"))
    assert read(open_file("a.npz", content)) == [*TABLE.tolist(), [1, 2]]


def test_npy_is_read_where_it_lies(open_file, tmp_path):
    dataset = open_file("a.npy", to_npy(TABLE))
    assert dataset.folder == tmp_path / "files"
    assert not (tmp_path / "cache").exists()


def test_points_that_are_not_finite_are_found_behind_the_header(open_file):
    table = TABLE.copy()
    table[1, 2] = np.inf
    with pytest.raises(DataError, match="series 1 is inf at point 2 of 4"):
        open_file("a.npy", to_npy(table)).check_finite()


def test_a_change_of_a_value_is_another_fingerprint(open_file):
    first = open_file("a.npy", to_npy(TABLE)).fingerprint
    assert open_file("a.npy", to_npy(TABLE)).fingerprint == first
    assert open_file("a.npy", to_npy(TABLE + 1)).fingerprint != first


@pytest.mark.parametrize("form", ["npy", "npy.gz", "npz"])
@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.array(1.0), r"shape \(\)"),
        (np.zeros((3, 0)), "no points"),
        (np.zeros(3, complex), "dtype complex128"),
        (np.zeros(3, bool), "dtype bool"),
        (np.array(["a"]), "dtype <U1"),
        (np.zeros(3, "datetime64[s]"), r"dtype datetime64\[s\]"),
        (np.zeros(3, np.longdouble), "dtype "),
        (np.zeros(3, [("a", "<f8")]), "dtype "),
        (np.array([1, None], object), "pickled Python objects"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(open_file, form, array, fault):
    if form == "npz":
        content = to_npz(odd=array)
        fault = f"array 'odd'.*{fault}"
    else:
        content = pack(form, to_npy(array, allow_pickle=True))
    with pytest.raises(DataError, match=fault) as caught:
        open_file(f"a.{form}", content)
    assert caught.value.next_command or "no points" in fault


def test_objects_are_never_unpickled(open_file, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with pytest.raises(DataError, match="never are") as caught:
        open_file("a.npy", to_npy(np.array([Bomb()], object), allow_pickle=True))
    assert "numpy.savez" in caught.value.next_command
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"not an array", "is no npy"),
        (to_npy(TABLE)[:-1], "truncated: 223 bytes, expected 224"),
        (to_npy(TABLE) + b"x", "longer than its header says"),
        (forge("(4611686018427387904,)"), "is truncated"),
        (forge("(1000000000, 1000000000)", order="True"), "is truncated"),
        (forge("(99999999999999999999999999, 9)"), "is truncated"),
        (forge("(4611686018427387904, 0)"), "no points"),
        (forge("(-1,)"), "shape"),
        (forge("(1.5,)"), "is no npy"),
        pytest.param(forge("(" * 5000), "is no npy", id="nested"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "is no npy"),
        (b"\x93NUMPY\x03\x00\x10\x00\x00\x00{}", "is no npy"),
    ],
)
def test_a_header_that_lies_is_refused(open_file, content, fault):
    with pytest.raises(DataError, match=fault):
        open_file("a.npy", content)


@pytest.mark.parametrize("order", ["True", "False"])
@pytest.mark.parametrize("shape", ["(1099511627776,)", "(2, 1099511627776)", "(1099511627776, 2)"])
def test_packed_values_end_before_the_header_says(open_file, shape, order):
    with pytest.raises(DataError, match=r"ends too early: it has 16 bytes of \d+"):
        open_file("a.npy.gz", gzip.compress(forge(shape, b"\0" * 16, order=order)))


def test_packed_values_go_on_after_the_header_says(open_file):
    with pytest.raises(DataError, match="longer than the header of it says"):
        open_file("a.npy.gz", gzip.compress(to_npy(TABLE) + b"\0"))


@pytest.mark.parametrize("form", ["npy.gz", "npz"])
def test_a_small_file_that_unpacks_to_too_much(open_file, monkeypatch, form):
    monkeypatch.setattr(parsed_module, "MAX_UNPACKED_BYTES", 1 << 20)
    bomb = np.zeros(1 << 20)
    content = to_npz(a=bomb) if form == "npz" else gzip.compress(to_npy(bomb))
    with pytest.raises(DataError, match=r"unpacks to more than 1 MiB from [\d,]+ bytes"):
        open_file(f"a.{form}", content)


def test_what_packs_well_within_reason_is_read(open_file, monkeypatch):
    monkeypatch.setattr(parsed_module, "MAX_UNPACKED_BYTES", 1 << 10)
    values = np.repeat(np.random.default_rng(0).standard_normal(2000), 8)
    assert open_file("a.npz", to_npz(a=values)).num_elements == 16_000


@pytest.mark.parametrize("cut", [5, 60, -3])
@pytest.mark.parametrize("form", ["npy.gz", "npz"])
def test_a_damaged_archive(open_file, form, cut):
    content = to_npz(a=TABLE) if form == "npz" else gzip.compress(to_npy(TABLE))
    with pytest.raises(DataError, match=r"is damaged gzip|is no readable npz"):
        open_file(f"a.{form}", content[:cut])


def test_a_flipped_byte_in_an_archive(open_file):
    content = bytearray(to_npz(a=np.arange(1000.0)))
    content[200] ^= 0xFF
    with pytest.raises(DataError, match=r"is no readable npz|is no npy|holds array 'a'"):
        open_file("a.npz", bytes(content))


def test_an_archive_of_something_else(open_file):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(DataError, match=r"array 'notes\.txt', which is no npy"):
        open_file("a.npz", file.getvalue())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w"):
        pass
    with pytest.raises(DataError, match="holds no array"):
        open_file("a.npz", file.getvalue())


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_archive_of_any_packing_is_named(open_file, method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.npy", to_npy(np.random.default_rng(0).random(500)))
    content = bytearray(file.getvalue())
    content[120:200] = (byte ^ 0x5A for byte in content[120:200])
    with pytest.raises(DataError, match="is no readable npz"):
        open_file("a.npz", bytes(content))
