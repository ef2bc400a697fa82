"""Parquet files, of which only the columns and rows that are asked for are read.

Compressed values can be a million times larger than their file. What is read is therefore bounded:
by 256 MB, or 100 times the size of the file where that is more. Images are kept encoded in a
temporary file, which is removed with the data; nothing stays on the disk.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vit_clt.data.tables import Column, Table, stated_names
from vit_clt.data.temporary import TemporaryFolder
from vit_clt.errors import InputError
from vit_clt.inputs import parse_json, reading

LEAST_BOUND = 256_000_000
MOST_RATIO = 100
BATCH_BYTES = 256_000_000
MOST_BATCH_ROWS = 256


class ParquetTable(Table):
    """The rows of some parquet files with the same columns.

    Raises:
        InputError: a file cannot be read, or has other columns than the first.
    """

    def __init__(self, files: Sequence[Path], name: str):
        self.name = name
        self.folder = files[0].parent
        with reading(name, "parquet files", field="data"):
            self._files = [pq.ParquetFile(file, memory_map=True) for file in files]
            self._sizes = [file.stat().st_size for file in files]
            self._schema = self._files[0].schema_arrow
            self.columns = _columns(self._schema)
            self._n = sum(file.metadata.num_rows for file in self._files)
        for path, file in zip(files, self._files, strict=True):
            if file.schema_arrow.names != self._schema.names:
                raise InputError(
                    f"{path} has columns {', '.join(file.schema_arrow.names)[:80]}; expected those "
                    f"of {files[0]}."
                )

    def __len__(self) -> int:
        return self._n

    def values(self, column: str) -> list[Any]:
        """Every value of a column."""
        with reading(self.name, "parquet files", field="data"):
            return [
                value
                for _, batch in self._batches(column, range(self._n))
                for value in batch.to_pylist()
            ]

    def images(self, column: str, rows: Sequence[int]) -> ArrowFile:
        """The values of these rows, which ascend, in a temporary file."""
        with reading(self.name, "parquet files", field="data"):
            free = shutil.disk_usage(tempfile.gettempdir()).free
            return ArrowFile(
                self._schema.field(column).type,
                (values for _, values in self._batches(column, rows)),
                free,
            )

    def _batches(self, column: str, rows: Sequence[int]) -> Iterator[tuple[int, pa.Array]]:
        """The first row of each batch, and those of its values that are in `rows`."""
        start = 0
        wanted = iter(rows)
        row = next(wanted, None)
        expected = self._schema.field(column).type
        for file, size in zip(self._files, self._sizes, strict=True):
            bound = max(LEAST_BOUND, MOST_RATIO * size)
            unpacked = 0
            for group in range(file.num_row_groups):
                n_rows = file.metadata.row_group(group).num_rows
                if row is None:
                    return
                if row >= start + n_rows:
                    start += n_rows
                    continue
                largest = _unpacked(file, group, column)
                self._check_bound(max(largest, unpacked), bound)
                # every value of a batch may repeat one that is as large as the whole group
                size_of_batch = max(1, min(MOST_BATCH_ROWS, BATCH_BYTES // max(largest, 1)))
                for batch in file.iter_batches(size_of_batch, [group], [column]):
                    values = batch.column(0)
                    unpacked += values.get_total_buffer_size()
                    self._check_bound(unpacked, bound)
                    if values.type != expected:
                        values = values.cast(expected)
                    inside = []
                    while row is not None and row < start + len(values):
                        inside.append(row - start)
                        row = next(wanted, None)
                    if len(inside) == len(values):
                        yield start, values
                    elif inside:
                        yield start, values.take(pa.array(inside))
                    start += len(values)
                    if row is None:
                        return

    def _check_bound(self, n_bytes: int, bound: int) -> None:
        if n_bytes > bound:
            raise InputError(
                f"{self.name} unpacks to more than {bound / 1e6:,.0f} MB; expected at most "
                f"{MOST_RATIO} times its size on disk."
            )


class ArrowFile:
    """Values of one column in a temporary Arrow file, which is removed with this object."""

    def __init__(self, kind: pa.DataType, batches: Iterator[pa.Array], free: int):
        self._folder = TemporaryFolder()
        schema = pa.schema([pa.field("values", kind)])
        written = 0
        with pa.OSFile(str(self._path()), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for values in batches:
                written += values.nbytes
                if written > 0.9 * free:
                    raise InputError(
                        f"the encoded images need more than the {free / 1e9:.1f} GB that are free "
                        f"in {tempfile.gettempdir()}; expected more room, or TMPDIR elsewhere."
                    )
                writer.write_batch(pa.record_batch([values], schema=schema))
        self._open()

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: int) -> Any:
        return self._values[row].as_py()

    def __getstate__(self) -> TemporaryFolder:
        return self._folder

    def __setstate__(self, folder: TemporaryFolder) -> None:
        self._folder = folder
        self._open()

    def _path(self) -> Path:
        return self._folder.path / "values.arrow"

    def _open(self) -> None:
        with pa.memory_map(str(self._path())) as source:
            self._values = pa.ipc.open_file(source).read_all().column(0)


def _unpacked(file: pq.ParquetFile, group: int, column: str) -> int:
    """Bytes of the pages of a column in a row group, as the file says."""
    metadata = file.metadata.row_group(group)
    chunks = (metadata.column(i) for i in range(metadata.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema == column or chunk.path_in_schema.startswith(f"{column}.")
    )


def _columns(schema: pa.Schema) -> list[Column]:
    """The columns, with the types and class names that Hugging Face datasets wrote beside them."""
    features: Any = {}
    if b"huggingface" in (schema.metadata or {}):
        written = parse_json(schema.metadata[b"huggingface"], "the metadata of the columns")
        info = written.get("info")
        features = info.get("features") if isinstance(info, dict) else None
    columns = []
    for field in schema:
        feature = features.get(field.name) if isinstance(features, dict) else None
        kind = feature.get("_type") if isinstance(feature, dict) else None
        names = stated_names(feature.get("names") if isinstance(feature, dict) else None)
        # pandas writes encoded images as a struct of bytes and path, without the type
        struct = pa.types.is_struct(field.type) and {f.name for f in field.type} == {
            "bytes",
            "path",
        }
        if struct and kind not in ("Audio", "Video"):
            kind = "Image"
        columns.append(Column(field.name, str(kind or field.type), names))
    return columns
