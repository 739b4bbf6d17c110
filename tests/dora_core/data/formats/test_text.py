"""Encoding of text files: UTF-16 is refused with the command that converts it."""

from __future__ import annotations

import pytest

from dora_core.data.formats._text import refuse_utf16
from dora_core.errors import DataError


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_mark_of_utf_16_is_refused(encoding: str) -> None:
    start = ("x" if encoding == "utf-16" else "\ufeffx").encode(encoding)
    with pytest.raises(DataError, match=r"a\.jsonl is UTF-16; text files are read as UTF-8") as caught:
        refuse_utf16(start, "a.jsonl")
    assert "iconv -f UTF-16 -t UTF-8" in caught.value.hint


@pytest.mark.parametrize("start", [b"", b"{}", b"\xef\xbb\xbf{}"])
def test_other_texts_pass(start: bytes) -> None:
    refuse_utf16(start, "a.jsonl")
