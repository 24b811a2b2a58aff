"""Records from files: what no data holds is refused before it fills the memory."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ordermerge.errors import UserError
from ordermerge.records import read_records


def test_a_parquet_file_that_unpacks_without_measure_is_refused(tmp_path: Path) -> None:
    alike = pa.table({"q": pa.array(["x" * 10] * 1_000_000)})
    with pq.ParquetWriter(tmp_path / "bomb.parquet", alike.schema, compression="zstd") as writer:
        for _ in range(10):  # 140 MB in some ten thousand bytes
            writer.write_table(alike)
    with pytest.raises(UserError, match=r"bomb\.parquet: unpacks to more than \d+ MB, as no data does; save it anew"):
        read_records(tmp_path / "bomb.parquet")
    few = alike.slice(0, 2500)
    pq.write_table(few, tmp_path / "few.parquet")
    assert read_records(tmp_path / "few.parquet") == few.to_pylist()
