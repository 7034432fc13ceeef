"""Clicks and events, joined out of core.

Both files are dealt to buckets by ranges of display ids, about 260 thousand clicks each, and each bucket is
joined in memory. As the buckets follow each other by display id, so do the joined rows: by (display_id,
ad_id), whatever the order of the files and the number of buckets.
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.preprocess.hashing import drawn, uniform
from components.preprocess.outbrain.documents import UNREADABLE, Lookup
from components.preprocess.outbrain.features import REQUEST
from components.preprocess.outbrain.ids import MISSING
from components.preprocess.outbrain.preparation import Preparation
from components.preprocess.outbrain.tables import batches, kinds

CLICKS_IN_MEMORY = 1 << 18
MOST_BUCKETS = 500  # files that are open at once
SAMPLES = 256  # lines per bucket, read to set its range
DAY_MS = 86_400_000
MAPPINGS = ("train", "validation", "test")
SPLIT, FOLD = 0, 1  # streams of random numbers


def ranges(path: Path) -> np.ndarray:
    """First display id of each bucket but the first, from lines at evenly spaced places of the clicks file.

    What cannot be read is skipped here: the reader names such faults.
    """
    with open(path, "rb") as stream:
        names = _fields(stream.readline())
        size = path.stat().st_size
        stream.seek(size // 2)
        stream.readline()  # the rest of a line
        line = len(stream.readline()) or 1
        number = int(np.clip(-(-size // (line * CLICKS_IN_MEMORY)), 1, MOST_BUCKETS))
        column = names.index(b"display_id") if b"display_id" in names else 0
        sample = []
        for place in np.linspace(0, size, number * SAMPLES if number > 1 else 0, dtype=np.int64):
            stream.seek(place)
            stream.readline()
            fields = _fields(stream.readline())
            if len(fields) == len(names) and fields[column].isdigit() and len(fields[column]) < 19:
                sample.append(int(fields[column]))
    at = np.linspace(0, len(sample), number + 1)[1:-1].astype(int)
    return np.unique(np.sort(np.array(sample, np.int64))[at]) if sample else np.empty(0, np.int64)


def _fields(line: bytes) -> list[bytes]:
    return [field.strip(b'" \r\n') for field in line.split(b",")]


def deal(
    path: Path, table: str, starts: np.ndarray, folder: Path, end: int | None = None
) -> tuple[int, int, int]:
    """Deals the rows of a file to ``folder/<bucket>.arrow`` by display id, in file order.

    Args:
        end: rows of larger display ids are left out (events of the displays of Kaggle's clicks_test, which
            would all be in the last bucket).
    Returns:
        rows read, rows left out, largest display id.
    """
    folder.mkdir(parents=True)
    rows, skipped, largest = 0, 0, -1
    with ExitStack() as stack:
        writers = []
        for number in range(len(starts) + 1):
            sink = stack.enter_context(pa.OSFile(str(folder / f"{number:03d}.arrow"), "wb"))
            schema = pa.schema({name: kind.type for name, kind in kinds(table).items()})
            writers.append(stack.enter_context(pa.ipc.new_stream(sink, schema)))
        for batch in batches(path, table):
            rows += batch.num_rows
            largest = max(largest, pc.max(batch["display_id"]).as_py() or 0)
            if end is not None:
                before = batch.num_rows
                batch = batch.filter(pc.less_equal(batch["display_id"], end))
                skipped += before - batch.num_rows
            bucket = np.searchsorted(starts, batch["display_id"].to_numpy(), side="right").astype(np.int16)
            if (bucket[1:] < bucket[:-1]).any():
                order = np.argsort(bucket, kind="stable")
                batch, bucket = batch.take(pa.array(order)), bucket[order]
            bounds = np.searchsorted(bucket, np.arange(len(starts) + 2))
            for number in np.unique(bucket):
                writers[number].write_batch(batch.slice(bounds[number], bounds[number + 1] - bounds[number]))
    return rows, skipped, largest


@dataclass(frozen=True)
class Join:
    """Joins one bucket and splits it.

    Attributes:
        ads, documents: the small tables.
        clicks, events: folders of :func:`deal`.
        joined: folder for ``<mapping>/<bucket>.parquet``, the requests (``REQUEST``) with display_id,
            clicked and fold; no file where a mapping gets no row.
    """

    ads: Lookup
    documents: Lookup
    clicks: Path
    events: Path
    joined: Path
    preparation: Preparation
    seed: int

    def __call__(self, number: int) -> Counter:
        """Returns the counts by reason."""
        counts: Counter = Counter()
        display, ad, clicked = self._clicks(number, counts)
        of, start, inverse = np.unique(display, return_index=True, return_inverse=True)
        clicks = np.bincount(inverse, clicked, minlength=len(of))
        counts["displays"] = len(of)
        counts["displays_without_click"] = int((clicks == 0).sum())
        counts["displays_with_several_clicks"] = int((clicks > 1).sum())
        viewed = self._viewed(number, of, counts)
        mapping = self._split(of, viewed["timestamp"])
        fold = (drawn(of, self.seed, FOLD) % np.uint64(self.preparation.folds)).astype(np.int8)
        promoted, known = self.ads.take(ad)
        counts["rows_of_unknown_ad"] = int((~known).sum())
        columns = {"display_id": display, "clicked": clicked.astype(np.int8), "ad_id": ad, **promoted}
        row_mapping = mapping[inverse]
        for place, name in enumerate(MAPPINGS):
            rows = np.flatnonzero(row_mapping == place)
            counts[f"displays_{name}"] = int((mapping == place).sum())
            counts[f"rows_{name}"] = len(rows)
            if len(rows):
                self._write(name, number, rows, inverse[rows], columns, {**viewed, "fold": fold})
        return counts

    def _write(self, mapping: str, number: int, rows, displays, by_row: dict, by_display: dict) -> None:
        table = {name: values[rows] for name, values in by_row.items()}
        for name, values in by_display.items():
            table[name] = values.take(pa.array(displays)) if name == "geo_location" else values[displays]
        names = ("display_id", "clicked", "fold", *REQUEST)
        pq.write_table(
            pa.table({name: table[name] for name in names}),
            self.joined / mapping / f"{number:03d}.parquet",
            use_dictionary=["geo_location"],
            compression="lz4",
        )

    def _clicks(self, number: int, counts: Counter) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Display, ad and click by (display, ad); the first line of each pair."""
        table = _stored(self.clicks / f"{number:03d}.arrow")
        display, ad, clicked = (table[name].to_numpy() for name in ("display_id", "ad_id", "clicked"))
        order = np.lexsort((ad, display))  # stable
        display, ad, clicked = display[order], ad[order], clicked[order]
        again = np.append(False, (display[1:] == display[:-1]) & (ad[1:] == ad[:-1]))[: len(display)]
        counts["clicks_repeated"] = int(again.sum())
        return display[~again], ad[~again], clicked[~again]

    def _viewed(self, number: int, of: np.ndarray, counts: Counter) -> dict:
        """What is known of each display: its event, and the attributes of the document viewed."""
        table = _stored(self.events / f"{number:03d}.arrow")
        clicked = np.isin(table["display_id"].to_numpy(), of)
        counts["events_without_clicks"] = int((~clicked).sum())
        table = table.filter(pa.array(clicked))
        distinct, first = np.unique(table["display_id"].to_numpy(), return_index=True)
        counts["events_repeated"] = table.num_rows - len(distinct)
        place = np.searchsorted(distinct, of)
        found = np.append(distinct, -1)[place] == of
        counts["displays_without_event"] = len(of) - int(found.sum())
        row = pa.array(np.append(first, 0)[place], mask=~found)
        table = table.take(row)
        viewed = {"document_id": _filled(table["document_id"])}
        for name, values in {
            "timestamp": pc.if_else(pc.less(table["timestamp"], 0), UNREADABLE, table["timestamp"]),
            "platform": _platform(table["platform"]),
        }.items():
            numbers = _filled(values)
            counts[f"displays_with_unreadable_{name}"] = int((numbers == UNREADABLE).sum())
            counts[f"displays_without_{name}"] = int((found & (numbers == MISSING)).sum())
            viewed[name] = np.maximum(numbers, MISSING)
        geo = pc.fill_null(table["geo_location"], "").combine_chunks()
        counts["displays_without_geo_location"] = pc.sum(pc.equal(geo, "")).as_py() or 0
        counts["displays_without_geo_location"] -= counts["displays_without_event"]
        attributes, known = self.documents.take(viewed["document_id"])
        counts["displays_of_unknown_document"] = int((found & ~known).sum())
        return {**viewed, **attributes, "geo_location": geo}

    def _split(self, display: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
        """Position in ``MAPPINGS`` of each display; without a time it cannot be of the train days."""
        draw = uniform(display, self.seed, SPLIT)
        early = (timestamp != MISSING) & (timestamp // DAY_MS <= self.preparation.train_last_day)
        test = self.preparation.test_share
        validation = draw < test + self.preparation.validation_share
        return np.where(early & (draw >= test), np.where(validation, 1, 0), 2)


def _stored(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as stream:
        table = pa.ipc.open_stream(stream).read_all()
    path.unlink()
    return table


def _platform(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    place = pc.index_in(texts, value_set=pa.array(["1", "2", "3"]))
    number = pc.add(place, 1).cast(pa.int64())
    return pc.if_else(pc.and_(pc.is_valid(texts), pc.is_null(place)), UNREADABLE, number)


def _filled(values: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(values, MISSING).to_numpy()


def files(folder: Path) -> list[Path]:
    """The joined files of one mapping, by display id."""
    return sorted(folder.glob("*.parquet"))
