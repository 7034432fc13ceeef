"""The small tables, whole in memory: ads, documents, and what documents are about.

They grow with the number of documents and ads (3 million and 0.5 million in Outbrain), not with the clicks.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from components.preprocess.outbrain.features import LISTS, MAX_HOTNESS, buckets
from components.preprocess.outbrain.ids import MISSING, Index, bucket, text_keys
from components.preprocess.outbrain.tables import batches, kinds

UNREADABLE = -2  # not missing, but not understood: counted, then taken as missing
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
NAME_OF = {"topics": "topic_id", "entities": "entity_id", "categories": "category_id"}


@dataclass(frozen=True)
class Lookup:
    """Attributes by id.

    Attributes:
        index: of the ids (n of them).
        columns: int64 (n + 1,), -1 where missing; the last entry, all -1, is for ids that are not there.
    """

    index: Index
    columns: Mapping[str, np.ndarray]

    def take(self, wanted: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The attributes of each wanted id, and whether it is there."""
        place = self.index(wanted)
        return {name: column[place] for name, column in self.columns.items()}, place < len(self.index.ids)


@dataclass(frozen=True)
class Subjects:
    """What documents are about: topics, entities, categories.

    Attributes:
        index: of the documents that any of the three names (n of them).
        lists: feature to the hashed ids of a document's first three entries in file order, int32
            (n + 1, 3), -1 after the list's end; the last row is for documents that are not there.
        weights: ``topics``, ``entities``, ``categories`` to tf-idf weights, rows of length 1: float32 CSR
            (n + 1, subjects).
    """

    index: Index
    lists: Mapping[str, np.ndarray]
    weights: Mapping[str, scipy.sparse.csr_matrix]


def read_documents(path: Path, counts: Counter) -> Lookup:
    """``documents_meta``: source, publisher and publish time (ms since 1970) of each document.

    A missing publisher becomes a publisher of its own: numbers after the largest one, in the order of the
    document ids (the reference numbers them in file order).
    """
    table = _read(path, "documents_meta")
    document = _numbers(table, "document_id")
    first = _firsts(document, counts, "documents_repeated")
    columns = {
        name: np.append(_numbers(table, name)[first], MISSING) for name in ("source_id", "publisher_id")
    }
    publisher = columns["publisher_id"][:-1]
    nobody = publisher == MISSING
    publisher[nobody] = publisher.max(initial=0) + 1 + np.cumsum(nobody)[nobody]
    time = _milliseconds(table["publish_time"].take(first))
    counts["documents"] = len(first)
    counts["documents_without_publisher"] = int(nobody.sum())
    counts["documents_without_publish_time"] = int((time == MISSING).sum())
    counts["documents_with_unreadable_publish_time"] = int((time == UNREADABLE).sum())
    columns["publish_time"] = np.append(np.maximum(time, MISSING), MISSING)
    return Lookup(Index(document[first]), columns)


def read_ads(path: Path, documents: Lookup, counts: Counter) -> Lookup:
    """``promoted_content``: document, campaign and advertiser of each ad, and its document's attributes."""
    table = _read(path, "promoted_content")
    ad = _numbers(table, "ad_id")
    first = _firsts(ad, counts, "ads_repeated")
    names = {
        "document_id": "document_id_promo",
        "campaign_id": "campaign_id",
        "advertiser_id": "advertiser_id",
    }
    columns = {new: np.append(_numbers(table, name)[first], MISSING) for name, new in names.items()}
    promoted, known = documents.take(columns["document_id_promo"])
    columns.update({f"{name}_promo": values for name, values in promoted.items()})
    counts["ads"] = len(first)
    counts["ads_of_unknown_document"] = int((~known[:-1]).sum())
    return Lookup(Index(ad[first]), columns)


def read_subjects(paths: Mapping[str, Path], max_buckets: int, counts: Counter) -> Subjects:
    """``documents_topics``, ``documents_entities`` and ``documents_categories``."""
    entries = {name: _entries(paths[f"documents_{name}"], name, counts) for name in LISTS.values()}
    index = Index(np.unique(np.concatenate([document for document, _, _ in entries.values()])))
    documents = len(index.ids)
    lists, weights = {}, {}
    for feature, name in LISTS.items():
        document, subject, confidence = entries.pop(name)
        row = index(document)
        lists[feature] = _first_three(row, bucket(subject, buckets(feature, max_buckets)), documents)
        height = int(document.max(initial=0)) + 1
        weights[name] = _tf_idf(row, subject, confidence, documents, height)
    return Subjects(index, lists, weights)


def _entries(path: Path, name: str, counts: Counter) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Document, subject (entities: key of the text) and confidence; by document, then in file order."""
    table = _read(path, f"documents_{name}")
    document = _numbers(table, "document_id")
    subject = table[NAME_OF[name]].to_numpy()
    pairs = pd.DataFrame({"document": document, "subject": subject})
    first = np.flatnonzero(~pairs.duplicated().to_numpy())
    counts[f"{name}_repeated"] = len(document) - len(first)
    first = first[np.argsort(document[first], kind="stable")]
    return document[first], subject[first], table["confidence_level"].to_numpy()[first]


def _first_three(row: np.ndarray, hashed: np.ndarray, documents: int) -> np.ndarray:
    place = np.arange(len(row)) - np.searchsorted(row, row)  # in the document's list
    kept = place < MAX_HOTNESS
    lists = np.full((documents + 1, MAX_HOTNESS), -1, np.int32)
    lists[row[kept], place[kept]] = hashed[kept]
    return lists


def _tf_idf(
    row: np.ndarray, subject: np.ndarray, confidence: np.ndarray, documents: int, height: int
) -> scipy.sparse.csr_matrix:
    """Confidence times ``ln(height / entries of the subject)``; then each row is divided by its length.

    Args:
        height: largest document id of the table plus 1, the reference's number of documents.
    """
    subjects, column, entries = np.unique(subject, return_inverse=True, return_counts=True)
    value = confidence * np.log(height / entries)[column]
    length = np.sqrt(np.bincount(row, value**2, minlength=documents))[row]
    value = np.divide(value, length, out=np.zeros_like(value), where=length > 0)
    shape = (documents + 1, max(1, len(subjects)))
    return scipy.sparse.csr_matrix((value.astype(np.float32), (row, column)), shape)


def _read(path: Path, table: str) -> pa.Table:
    """All of a table; texts of entities as keys, so that they need 8 bytes each."""
    parts = []
    for batch in batches(path, table):
        part = pa.Table.from_batches([batch])
        if "entity_id" in part.column_names:
            texts = part["entity_id"].combine_chunks().dictionary_encode()
            keys = text_keys(texts.dictionary.to_pylist())[texts.indices.to_numpy()]
            part = part.set_column(part.column_names.index("entity_id"), "entity_id", pa.array(keys))
        parts.append(part)
    if parts:
        return pa.concat_tables(parts)
    types = {name: pa.int64() if name == "entity_id" else kind.type for name, kind in kinds(table).items()}
    return pa.schema(types).empty_table()


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return pc.fill_null(table[name], MISSING).to_numpy()


def _firsts(ids: np.ndarray, counts: Counter, repeated: str) -> np.ndarray:
    """Positions of the first row of each id, by ascending id."""
    _, first = np.unique(ids, return_index=True)
    counts[repeated] = len(ids) - len(first)
    return first


def _milliseconds(texts: pa.ChunkedArray) -> np.ndarray:
    """ms since 1970; -1 where missing, -2 where the text is no time or lies before 1970 or after 2262."""
    times = pd.to_datetime(texts.to_pandas(), format=TIME_FORMAT, errors="coerce")
    number = times.to_numpy().astype("datetime64[ms]").astype(np.int64)
    number = np.where(times.isna().to_numpy() | (number < 0), UNREADABLE, number)
    return np.where(texts.is_null().to_numpy(), MISSING, number)
