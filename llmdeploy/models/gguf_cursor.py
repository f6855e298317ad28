"""Bounded reading of a GGUF header: its numbers and texts, one after the other.

A header comes from a stranger. What it states is compared with the size of the file and with limits before anything is
read or allocated for it, and what nobody needs is skipped. So each header is read within a second, and an interrupt
ends it: the work is many small steps, never one long call.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from io import BufferedReader

LARGEST = 128 * 1024**2
"""The most bytes of a header: those with the largest vocabularies have 20 MB."""
MOST_FIELDS = MOST_TENSORS = 2**16
"""The most fields, and the most tensors of one file: models have some dozen fields and a few thousand tensors."""
MOST_TEXTS = 2**22
"""The most texts in all arrays together: a vocabulary of 262,144 tokens comes with 514,906 merges."""
LONGEST_NAME = 2**16 - 1
"""The most bytes in the name of a field, by the format, or of a tensor."""
LONGEST_TEXT = 2**20
"""Bytes of a text that are kept; the rest is skipped. The longest that is needed is the chat template."""
LONGEST_LIST = 2**14
"""The most numbers of an array that is kept: one for each layer is needed, scores of a vocabulary are not."""
MOST_KEPT = 2**24
"""The most bytes of texts, and numbers of arrays, that are kept of one header."""
DIMENSIONS = 4
"""The most dimensions of a tensor: GGML_MAX_DIMS."""
LIMIT = 2**63
"""The limit of a tensor's lengths and of the number of its elements, which GGML counts with 63 bits."""

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The formats of `struct` for the types of numbers."""
_LAYOUTS = {form: struct.Struct(f"<{form}") for form in SCALARS.values()}


class Damaged(Exception):
    """The bytes are not a GGUF header, or one that no model has."""


class Cursor:
    """A position in a file of `size` bytes, from which a header is read."""

    def __init__(self, file: BufferedReader, size: int) -> None:
        self._file = file
        self._size = size
        self._kept = 0
        self._texts = 0

    def tell(self) -> int:
        return self._file.tell()

    def number(self, form: str) -> Any:
        """Read the next number."""
        layout = _LAYOUTS[form]
        content = self._file.read(layout.size)
        if len(content) < layout.size:
            raise self._ends()
        return layout.unpack(content)[0]

    def count(self, what: str, least: int, most: int) -> int:
        """Read how many things follow, each of which takes at least `least` bytes."""
        count: int = self.number("Q")
        if self.tell() + count * least > self._size:
            raise self._ends()
        if count > most:
            raise Damaged(f"it states {count:,} {what}, and no model has more than {most:,}")
        return count

    def name(self) -> str:
        """Read the name of a field or of a tensor."""
        length = self.number("Q")
        if length > LONGEST_NAME:
            raise self._ends() if self.tell() + length > self._size else Damaged(f"it has a name of {length:,} bytes")
        return self._decoded(length)

    def text(self) -> str:
        """Read a text; what is longer than LONGEST_TEXT is cut."""
        length = self.number("Q")
        self._check(length)
        kept = min(length, LONGEST_TEXT)
        text = self._decoded(kept)
        self._skip(length - kept)
        return text

    def numbers(self, form: str) -> tuple[Any, ...]:
        """Read an array of numbers; return an empty tuple for one that is longer than LONGEST_LIST."""
        width = _LAYOUTS[form].size
        count: int = self.number("Q")
        self._check(count * width)
        if count > LONGEST_LIST:
            self._skip(count * width)
            return ()
        self._keep(count)
        return self._unpacked(form, count)

    def shape(self) -> tuple[int, ...]:
        """Read the lengths of a tensor."""
        count = self.number("I")
        if count > DIMENSIONS:
            raise Damaged(f"it has a tensor of {count:,} dimensions, and {DIMENSIONS} are the most")
        shape: tuple[int, ...] = self._unpacked("Q", count)
        elements = 1
        for length in shape:
            elements *= length
            if length >= LIMIT or elements >= LIMIT:
                raise Damaged("it has a tensor with more elements than can be counted")
        return shape

    def skip_texts(self) -> int:
        """Skip an array of texts without decoding them, and return their number: a vocabulary has 150,000."""
        remaining = count = self.count("texts", 8, MOST_TEXTS)
        self._texts += count
        if self._texts > MOST_TEXTS:
            raise Damaged(f"it states {self._texts:,} texts, and no model has more than {MOST_TEXTS:,}")
        length_at = _LAYOUTS["Q"].unpack_from
        while remaining:
            window = self._file.peek()
            at, last = 0, len(window) - 8
            while at <= last and remaining:
                at += 8 + length_at(window, at)[0]
                remaining -= 1
            if at == 0:  # the length of the next text is not in the window as a whole
                at, remaining = self.number("Q"), remaining - 1
            self._skip(at)
        return count

    def _unpacked(self, form: str, count: int) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{form}")
        content = self._file.read(layout.size)
        if len(content) < layout.size:
            raise self._ends()
        return layout.unpack(content)

    def _decoded(self, length: int) -> str:
        self._keep(length)
        content = self._file.read(length)
        if len(content) < length:
            raise self._ends()
        return content.decode("utf-8", errors="replace")

    def _skip(self, count: int) -> None:
        self._check(count)
        if count:
            self._file.seek(count, 1)

    def _keep(self, count: int) -> None:
        self._kept += count
        if self._kept > MOST_KEPT:
            raise Damaged(f"its names, texts and numbers take more than {MOST_KEPT:,} bytes")

    def _check(self, count: int) -> None:
        """Raise Damaged if fewer than `count` bytes are left, or if a header with them would be too large."""
        end = self.tell() + count
        if end > self._size:
            raise self._ends()
        if count > LARGEST:
            raise Damaged(f"its header states a field of {count:,} bytes")
        if end > LARGEST:
            raise Damaged(f"its header has more than {LARGEST:,} bytes")

    def _ends(self) -> Damaged:
        return Damaged(f"its header does not end within the {self._size:,} bytes that are there")
