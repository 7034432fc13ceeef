"""Tables -> the Parquet files of one mapping, in file order or in a uniformly random one, out of core.

A shuffle scatters the rows at random over temporary files, then permutes each file in memory: every order of
all rows is equally likely. What is in memory at once does not grow with the data.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.tables import sized

ROW_GROUPS = 64  # per file, and of small data: as many workers can each read their own
ROW_GROUP_ROWS = 1 << 16
SCATTER_FILES = 64
ROWS_IN_MEMORY = 1 << 20  # of a scattered file; a larger one is scattered again
BLOCK_ROWS = 1 << 18


def write_shards(
    tables: Iterable[pa.Table], folder: Path, mapping: str, shuffle: int | None
) -> tuple[tuple[str, ...], int]:
    """Writes ``folder/<mapping>/00000.parquet`` and so on, at most 4 Mi rows each.

    All row groups of a mapping have ``min(65536, ceil(rows / 64))`` rows; only the last has fewer.

    Args:
        tables: the rows, in tables of one schema and of any size; read once.
        shuffle: seed of a random row order; ``None`` keeps the order.
    Returns:
        file names relative to ``folder`` (none where there is no row), and the number of rows.
    """
    scatter = folder / f"{mapping}.scatter"
    rng = None if shuffle is None else np.random.default_rng(shuffle)
    try:
        parts = _scattered(tables, scatter, rng)
        rows = sum(parts.values())
        size = min(ROW_GROUP_ROWS, max(1, -(-rows // ROW_GROUPS)))
        return _write(sized(_ordered(parts, rng), size, exactly=True), folder, mapping), rows
    finally:
        shutil.rmtree(scatter, ignore_errors=True)


def _scattered(tables: Iterable[pa.Table], folder: Path, rng: np.random.Generator | None) -> dict[Path, int]:
    """Stores each row in one of several files, at random; without ``rng`` all in one. Returns their rows."""
    folder.mkdir(parents=True)
    rows: dict[Path, int] = {}
    writers: dict[Path, pa.RecordBatchStreamWriter] = {}
    with ExitStack() as stack:
        for block in sized(tables, BLOCK_ROWS):
            for number, part in enumerate([block] if rng is None else _dealt(block, rng)):
                path = folder / f"{number:03d}.arrow"
                if path not in writers and part.num_rows:
                    sink = stack.enter_context(pa.OSFile(str(path), "wb"))
                    writers[path] = stack.enter_context(pa.ipc.new_stream(sink, part.schema))
                if part.num_rows:
                    writers[path].write_table(part)
                    rows[path] = rows.get(path, 0) + part.num_rows
    return rows


def _dealt(block: pa.Table, rng: np.random.Generator) -> Iterator[pa.Table]:
    file = rng.integers(0, SCATTER_FILES, block.num_rows)
    dealt = block.take(np.argsort(file, kind="stable"))
    bounds = np.searchsorted(np.sort(file), np.arange(SCATTER_FILES + 1))
    for start, end in zip(bounds, bounds[1:], strict=False):
        yield dealt.slice(start, end - start)


def _ordered(parts: dict[Path, int], rng: np.random.Generator | None) -> Iterator[pa.Table]:
    """The rows of the stored files, permuted where there is an ``rng``; each file is removed after use."""
    for path, rows in sorted(parts.items()):
        if rng is None:
            yield from _read(path)
        elif rows > ROWS_IN_MEMORY:
            yield from _ordered(_scattered(_read(path), path.with_suffix(""), rng), rng)
        else:
            yield pa.concat_tables(_read(path)).combine_chunks().take(rng.permutation(rows))
        path.unlink()


def _read(path: Path) -> Iterator[pa.Table]:
    with pa.OSFile(str(path)) as stream:
        for batch in pa.ipc.open_stream(stream):
            yield pa.Table.from_batches([batch])


def _write(row_groups: Iterable[pa.Table], folder: Path, mapping: str) -> tuple[str, ...]:
    (folder / mapping).mkdir()
    names: list[str] = []
    writer: pq.ParquetWriter | None = None
    try:
        for number, group in enumerate(row_groups):
            if writer is None or number % ROW_GROUPS == 0:
                if writer:
                    writer.close()
                names.append(f"{mapping}/{len(names):05d}.parquet")
                writer = pq.ParquetWriter(folder / names[-1], group.schema)
            writer.write_table(group, row_group_size=group.num_rows)
    finally:
        if writer:
            writer.close()
    return tuple(names)
