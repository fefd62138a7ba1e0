"""Checks of containers: a damaged or half-present file is refused instead of read as another clip.

Decoders stop quietly at the end of a truncated file, and demuxers pass over a hole and go on behind it. MP4/MOV boxes,
the Matroska/WebM segment, AVI's RIFF chunks, FLV's tags and GIF's blocks declare their sizes and so form a chain: it is
walked here from header to header. A declared end beyond the end of the file means that a part is missing; a link that
is none means that something in the middle was overwritten. What lies inside a frame is the decoder's to notice.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx", b"styp", b"pdin"}
_BOXES_OF_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"mvex", b"moof", b"traf"}
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # the identity of a header
_ASF_FACTS = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_KLV = bytes.fromhex("060e2b34")  # every key of an MXF begins so
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_CLUSTER, _GROUP = 0x1F43B675, 0xA0
_ELEMENTS = {
    *(0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367),  # of a segment
    *(0xE7, 0xA3, 0xAF, 0xA7, 0xAB, 0x5854, _GROUP),  # of a cluster
    *(0xEC, 0xBF, _EBML, _SEGMENT, _CLUSTER),  # void and checksum; a file may hold several segments
}
_CHUNKS = (b"dc", b"db", b"wb", b"pc", b"tx", b"sb")  # AVI: "00dc" is compressed video of stream 0
_LISTS = {b"JUNK", b"idx1", b"LIST", b"ISFT", b"vprp", b"strd", b"strn", b"indx"}
_TS_PACKETS = ((188, 0), (192, 4))  # bytes, and where the byte 0x47 stands

_TRUNCATED = "truncated: {} bytes are missing at its end"
_UNFINISHED = "unfinished: it ends in zeros, as a download that stopped does"
_EMPTY = 1 << 10  # zeros at an end that no stream has
_DAMAGED = "damaged at byte {} of {}"


def looks_like_text(path: Path) -> bool:
    """Whether the file begins as text: FFmpeg would render it as a picture of its letters, or follow a playlist."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head or head.startswith((b"YUV4MPEG2", b"GIF8", b"FLV\x01")):
        return False
    return all(byte >= 32 or byte in b"\t\r\n\f\x1b" for byte in head) and _is_utf8(head)


def what_is_broken(path: Path) -> str | None:
    """In words, "truncated: 20 bytes are missing at its end" or "damaged at byte 20 of 30"; None if nothing is seen."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = data[:12]
        if head[4:8] in _BOXES:
            return _boxes(data)
        if head[:4] == b"RIFF":
            return _riff(data)
        if head[:4] == _EBML.to_bytes(4, "big"):
            return _matroska(data)
        if head[:4] == b"FLV\x01":
            return _flv(data)
        if head[:4] == b"GIF8":
            return _gif(data)
        if head[:4] == b"\0\0\1\xba":
            return _program(data)
        if data[:16] == _ASF:
            return _asf(data)
        if head[:4] == _KLV:
            return _mxf(data)
        if head[:9] == b"YUV4MPEG2":
            return _uncompressed(data)
        if head[:3] == b"\0\0\1" or head[:4] == b"\0\0\0\1":  # the bare stream of a codec, which tells no lengths
            return _UNFINISHED if len(data) > _EMPTY and not any(data[-_EMPTY:]) else None
        return _packets(data)


def _missing(end: int, length: int) -> str | None:
    return _TRUNCATED.format(end - length) if end > length else None


def _boxes(data: mmap.mmap) -> str | None:
    """MP4 and MOV: boxes at the top level."""
    at, length, indexed = 0, len(data), False
    while at + 8 <= length:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
        if size == 0 and kind in _BOXES:  # to the end of the file
            return None
        if size < 8 or not (kind in _BOXES or kind.isalnum()):  # behind the index it may be padding
            return None if indexed else _DAMAGED.format(at, length)
        indexed |= kind in (b"moov", b"moof")
        broken = _inner_boxes(data, at + 8, at + size) if kind in _BOXES_OF_BOXES and at + size <= length else None
        if broken is not None:
            return _DAMAGED.format(broken, length)
        at += size
    return _missing(at, length)


def _inner_boxes(data: mmap.mmap, at: int, end: int) -> int | None:
    """The place where the boxes of an index are no chain."""
    while at + 8 <= end:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size < 8 or at + size > end:
            return at
        broken = _inner_boxes(data, at + 8, at + size) if kind in _BOXES_OF_BOXES else None
        if broken is not None:
            return broken
        at += size
    return None


def _riff(data: mmap.mmap) -> str | None:
    """AVI, chunk by chunk; other RIFF files (WebP) by their size."""
    at, length = 0, len(data)
    while at + 8 <= length:  # files over 1 GiB hold several
        if data[at : at + 4] != b"RIFF":
            return None
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if end > length:
            return _missing(end, length)
        if data[at + 8 : at + 12] in (b"AVI ", b"AVIX"):
            broken = _avi_chunks(data, at + 12, end)
            if broken is not None:
                return _DAMAGED.format(broken, length)
        at = end + end % 2
    return None


def _avi_chunks(data: mmap.mmap, at: int, end: int) -> int | None:
    """The place where the chain of chunks is broken."""
    while at + 8 <= end:
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        known = kind in _LISTS or kind[2:] in _CHUNKS or kind[:2] == b"ix"
        if not known and at + 12 < end and not kind.isalnum():
            return at
        if kind == b"LIST" and data[at + 8 : at + 12] in (b"movi", b"rec "):
            at += 12  # step in: their content is chunks too
            continue
        at += 8 + size + size % 2
    return None


def _matroska(data: mmap.mmap) -> str | None:
    """Elements of segments and clusters; both may be of unknown length in live recordings."""
    at, length, end = 0, len(data), 0
    while at < length and (not end or at < end):
        identity, start = _number(data, at, keep_marker=True)
        size, start = _number(data, start)
        if identity not in _ELEMENTS or start > length:
            return _missing(end, length) if end > length else _DAMAGED.format(at, length)
        if identity == _SEGMENT:
            end = 0 if size is None else start + size
            if end > length:
                return _missing(end, length)
            at = start
        elif identity == _CLUSTER or size is None:
            at = start
        else:
            at = start + size
    return _missing(at, length)


def _number(data: mmap.mmap, at: int, keep_marker: bool = False) -> tuple[int | None, int]:
    """EBML's number of variable length at a byte, and where it ends; None for "unknown" or none."""
    first = data[at] if at < len(data) else 0
    if not first:
        return None, at + 1
    width = 9 - first.bit_length()
    value, most = int.from_bytes(data[at : at + width], "big"), (1 << 7 * width) - 1
    if keep_marker:
        return value, at + width
    return (None if value & most == most else value & most), at + width


def _flv(data: mmap.mmap) -> str | None:
    """Tags, each followed by its length."""
    at, length = int.from_bytes(data[5:9], "big") + 4, len(data)
    while at + 11 <= length:
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        after = at + 11 + size
        if data[at] & 0x1F not in (8, 9, 18):
            return _DAMAGED.format(at, length)
        if after + 4 > length:
            return _missing(after + 4, length)
        if int.from_bytes(data[after : after + 4], "big") not in (11 + size, 0, size):
            return _DAMAGED.format(after, length)
        at = after + 4
    return None if at == length else _missing(at + 11, length)


def _gif(data: mmap.mmap) -> str | None:
    """Blocks up to the trailer, which some writers leave out."""
    length = len(data)
    at = 13 + _table(data[10] if length > 10 else 0)
    while at < length:
        kind = data[at]
        if kind == 0x3B:
            return None
        if kind == 0x2C and at + 11 <= length:
            at += 11 + _table(data[at + 9])
        elif kind == 0x21:
            at += 2
        else:
            return _DAMAGED.format(at, length)
        while at < length and data[at]:  # sub-blocks
            at += 1 + data[at]
        at += 1
    return _missing(at, length)


def _table(flags: int) -> int:
    """Bytes of a GIF's table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _program(data: mmap.mmap) -> str | None:
    """MPEG program streams: packs of packets, each with its length."""
    at, length = 0, len(data)
    while at + 6 <= length:
        if data[at : at + 3] != b"\0\0\1":
            return _DAMAGED.format(at, length)
        kind = data[at + 3]
        if kind == 0xBA:  # the header of a pack, in the form of MPEG-2 or of MPEG-1
            at += 14 + (data[at + 13] & 7 if at + 13 < length else 0) if data[at + 4] & 0xC0 == 0x40 else 12
        else:
            at += 4 if kind == 0xB9 else 6 + int.from_bytes(data[at + 4 : at + 6], "big")
    return _missing(at if at >= length else at + 6, length)


def _asf(data: mmap.mmap) -> str | None:
    """ASF and WMV: objects, one of which holds packets of one size, as the header says."""
    at, length, packet = 0, len(data), 0
    while at + 24 <= length:
        kind, size = data[at : at + 16], int.from_bytes(data[at + 16 : at + 24], "little")
        if size < 24:
            return _DAMAGED.format(at, length)
        if kind == _ASF:
            facts = data.find(_ASF_FACTS, at, min(at + size, length))
            packet = int.from_bytes(data[facts + 92 : facts + 96], "little") if facts >= 0 else 0
        if kind == _ASF_DATA and packet:
            end = min(at + size, length)
            marks = data[at + 50 : end : packet]  # with bit 7: how many bytes of error correction follow
            if marks[0] & 0x80 and 0 in marks:
                return _DAMAGED.format(at + 50 + marks.index(0) * packet, length)
        at += size
    return _missing(at, length)


def _mxf(data: mmap.mmap) -> str | None:
    """MXF: keys, each with the length of its value."""
    at, length = 0, len(data)
    while at + 17 <= length:
        if data[at : at + 4] != _KLV:
            return _DAMAGED.format(at, length)
        first = data[at + 16]
        more = first & 0x7F if first & 0x80 else 0
        at += 17 + more + (int.from_bytes(data[at + 17 : at + 17 + more], "big") if more else first)
    return _missing(at, length)


def _packets(data: mmap.mmap) -> str | None:
    """MPEG transport streams: packets of one size, each with its first byte."""
    length = len(data)
    for packet, first in _TS_PACKETS:
        if length > 2 * packet and all(data[first + k * packet] == 0x47 for k in range(min(5, length // packet))):
            if length % packet:
                return _TRUNCATED.format(packet - length % packet)
            if data[length - packet + first] != 0x47:
                return _UNFINISHED
            starts = data[first::packet]
            lost = len(starts) - len(starts.lstrip(b"\x47"))
            return None if lost == len(starts) else _DAMAGED.format(lost * packet, length)
    return None


def _uncompressed(data: mmap.mmap) -> str | None:
    """YUV4MPEG2: a line of facts, then frames of one size, each after a line of its own."""
    at, length = data.find(b"\n") + 1, len(data)
    facts = {word[:1]: word[1:].decode("latin-1") for word in data[:at].split()[1:]}
    try:
        width, height = int(facts[b"W"]), int(facts[b"H"])
    except (KeyError, ValueError):
        return _DAMAGED.format(0, length)
    kind = re.fullmatch(r"(420|422|444|mono)(?:jpeg|mpeg2|paldv|p(\d+)|(\d+))?", facts.get(b"C", "420"))
    if kind is None:  # alpha, or one that nobody here has seen
        return None
    across, down = {"420": (2, 2), "422": (2, 1), "444": (1, 1), "mono": (0, 0)}[kind[1]]
    colours = 2 * -(-width // across) * -(-height // down) if across else 0
    frame = (width * height + colours) * (2 if int(kind[2] or kind[3] or 8) > 8 else 1)
    while at < length:
        if data[at : at + 5] != b"FRAME"[: length - at]:
            return _DAMAGED.format(at, length)
        line = data.find(b"\n", at)
        at = (line + 1 if line >= 0 else length) + frame
    return _missing(at, length)


def begins_in_the_middle(path: Path, form: str) -> bool:
    """Whether a stream without a header (its form in FFmpeg's words) begins within a packet: its start is gone."""
    with path.open("rb") as file:
        head = file.read(8)
    if form == "mpegts":
        return 0x47 not in (head[0], head[4:5][0] if len(head) > 4 else 0)
    if form in ("mjpeg", "mpjpeg"):
        return head[:2] != b"\xff\xd8"
    return form in ("h264", "hevc", "m4v", "mpegvideo", "mpeg") and head[:3] not in (b"\0\0\1", b"\0\0\0")


def _is_utf8(data: bytes) -> bool:
    try:
        data[:-4].decode("utf-8")  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True
