"""Arrow files, streams and Feather."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pytest

from dora_core.data.inputs import open_files
from tests.dora_core.data.written_inputs import ROWS, input_at, read, refused

TABLE = pa.Table.from_pylist(ROWS)


@pytest.mark.parametrize("kind", ["file", "stream", "feather", "lz4"])
def test_files_and_streams_give_their_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.feather" if kind in ("feather", "lz4") else "a.arrow")
    if kind in ("feather", "lz4"):
        feather.write_feather(TABLE, path, compression="lz4" if kind == "lz4" else "uncompressed")
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(path, TABLE.schema) as writer:
            writer.write_table(TABLE, max_chunksize=3)
    assert read(path) == read(path, batch_rows=1) == list(enumerate(ROWS))
    (file,) = open_files(input_at(path), {})
    assert file.types["responses"] == pa.list_(pa.string()) and list(file.rows()) == list(enumerate(ROWS))


def test_version_1_of_feather_and_compressed_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1" + b"\0" * 100)
    assert "is Feather version 1" in refused(tmp_path / "a.feather").message
    (tmp_path / "a.arrow.gz").write_bytes(b"")
    assert "is compressed, and a Feather or Arrow file is read only as it is" in refused(tmp_path / "a.arrow.gz").message
