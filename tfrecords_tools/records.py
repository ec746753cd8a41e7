"""Raw TFRecord framing in plain Python: to check files and to find their blocks.

A record is: length (uint64), masked CRC-32C of the length (uint32), the data, masked
CRC-32C of the data (uint32), all little-endian.  TensorFlow reports a damaged record
without its place; here the error names file, record number and byte offset.
"""

import functools
import gzip
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

HEADER_BYTES = 12
FOOTER_BYTES = 4
_MASK_DELTA = 0xA282EAD8  # TFRecord masks CRCs, so that data may hold CRCs itself
_CASTAGNOLI = 0x82F63B78  # CRC-32C polynomial, bits reversed


class RecordError(ValueError):
    """A corrupt or truncated record file.

    Attributes:
      path: The file.
      record: Number of the first bad record, from 0.
      offset: Byte at which it begins (of the decompressed stream).
    """

    def __init__(self, path: str | pathlib.Path, record: int, offset: int, what: str):
        self.path = pathlib.Path(path)
        self.record = record
        self.offset = offset
        super().__init__(
            f"{path}: record {record} at byte {offset} must be a whole TFRecord; "
            f"{what}. Restore the file from a copy or prepare the data set again."
        )


class Record(NamedTuple):
    """One record: its number from 0, the byte where it begins, its data."""

    number: int
    offset: int
    data: bytes


def read_records(path: str | pathlib.Path, compression: str = "") -> Iterator[Record]:
    """Yields the records of a file, each with both checksums verified.

    Raises:
      RecordError: At the first corrupt or truncated record.
    """
    crc = crc32c_function()
    offset = number = 0
    with _open(path, compression) as stream:
        while True:
            try:
                header = stream.read(HEADER_BYTES)
                if not header:
                    return
                length = _length(header, path, number, offset)
                body = stream.read(length + FOOTER_BYTES)
            except (EOFError, OSError, zlib.error) as error:
                raise RecordError(
                    path, number, offset, f"its {compression} stream breaks: {error}"
                ) from error
            if len(body) < length + FOOTER_BYTES:
                raise RecordError(
                    path,
                    number,
                    offset,
                    f"the file is truncated: {length} bytes announced, "
                    f"{max(len(body) - FOOTER_BYTES, 0)} there",
                )
            data = body[:length]
            (stored,) = struct.unpack("<I", body[length:])
            if stored != _masked(crc(data)):
                raise RecordError(path, number, offset, "the data fail their checksum")
            yield Record(number, offset, data)
            offset += HEADER_BYTES + length + FOOTER_BYTES
            number += 1


def record_offsets(path: str | pathlib.Path) -> np.ndarray:
    """Returns where each record of an uncompressed file begins, and the end of file.

    Reads headers only, so it costs a seek a record.

    Returns:
      int64 [records + 1].

    Raises:
      RecordError: For a damaged header or a file that ends too early.
    """
    path = pathlib.Path(path)
    size = path.stat().st_size
    offsets = [0]
    with path.open("rb") as stream:
        while offsets[-1] < size:
            stream.seek(offsets[-1])
            number = len(offsets) - 1
            header = stream.read(HEADER_BYTES)
            length = _length(header, path, number, offsets[-1])
            end = offsets[-1] + HEADER_BYTES + length + FOOTER_BYTES
            if end > size:
                raise RecordError(
                    path,
                    number,
                    offsets[-1],
                    f"the file is truncated: it ends at byte {size}, the record at "
                    f"{end}",
                )
            offsets.append(end)
    return np.array(offsets, np.int64)


def record_at(path: str | pathlib.Path, number: int, offset: int) -> bytes:
    """Returns the data of the record that begins at byte `offset`."""
    with pathlib.Path(path).open("rb") as stream:
        stream.seek(offset)
        length = _length(stream.read(HEADER_BYTES), path, number, offset)
        return stream.read(length)


def _open(path: str | pathlib.Path, compression: str) -> BinaryIO:
    if compression == "GZIP":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return pathlib.Path(path).open("rb")


def _length(header: bytes, path: str | pathlib.Path, number: int, offset: int) -> int:
    if len(header) < HEADER_BYTES:
        raise RecordError(
            path, number, offset, f"the file is truncated after {len(header)} bytes"
        )
    length, stored = struct.unpack("<QI", header)
    if stored != _masked(_crc32c_plain(header[:8])):
        raise RecordError(path, number, offset, "its length fails the checksum")
    return length


def _masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c_function() -> Callable[[bytes], int]:
    """Returns CRC-32C: the C library's where it is installed, else plain Python's.

    Training images have no google-crc32c (Beam brings it); plain Python checks about
    8 MB/s there, enough to find the bad record after a failure.
    """
    try:
        import google_crc32c
    except ImportError:
        return _crc32c_plain
    return google_crc32c.value


def _crc32c_plain(data: bytes) -> int:
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return tuple(table)
