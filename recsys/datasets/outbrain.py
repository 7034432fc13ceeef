"""Kaggle's Outbrain Click Prediction: which ad of a display is clicked (87 million rows).

Seven of its files are needed, and none may be passed on: the user brings them, or a Kaggle token of an
account that has accepted the competition's rules.
"""

import gzip
import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from recsys import archives, storage
from recsys.http_storage import AccessError
from recsys.outbrain_tables import COLUMNS
from recsys.raw_data import RawOutbrain
from recsys.step import UserError
from recsys.transfer import shown

NAMES = ("outbrain",)
COMPETITION = "https://www.kaggle.com/c/outbrain-click-prediction"
LICENCE = (
    "Data of Outbrain, published for the Kaggle competition Outbrain Click Prediction (2016-2017) under its "
    f"rules, {COMPETITION}/rules, which say what the data may be used for and which every user has to accept "
    "there. Not to be redistributed; this project passes nothing of it on."
)
# What Kaggle's own client calls (KaggleSwagger.yaml of https://github.com/Kaggle/kaggle-api), with basic
# authentication: list/ID answers the names of the files, download/ID/NAME redirects to a file.
API = "https://www.kaggle.com/api/v1/competitions/data/{}/outbrain-click-prediction"
SUFFIXES = (".csv", ".csv.gz", ".csv.zip")  # of a table's file; where there are several, the first counts
UNPACKED = "unpacked"  # folder of an archive's tables among the downloads
OTHER_NAMES = {"document_meta": "documents_meta"}


@dataclass(frozen=True)
class Options:
    """Outbrain has no options."""


class Token(NamedTuple):
    """A Kaggle token, which must not be shown, and where it was found."""

    login: tuple[str, str]
    origin: str


def fetch(name: str, source: str, options: Options, seed: int, folder: Path, downloads: Path) -> RawOutbrain:
    """Puts the seven files into ``folder`` as ``NAME.csv``.

    Args:
        source: a folder (of an object store with a slash at the end) or a zip or tar archive of the files,
            which may be compressed one by one; empty for Kaggle.
        seed: not used.
        folder: where the files go.
        downloads: where downloads live until the step has succeeded.
    Raises:
        UserError: a file or a column is missing, an archive is damaged or unsafe, or Kaggle refuses.
    """
    checksums = {}
    token = None if source else _token()
    addresses = _from_kaggle(downloads, token) if token else _addresses(source, downloads)
    for table, address in _choose(addresses, source or COMPETITION).items():
        path = _kaggle_file(address, downloads, token) if token else storage.obtain(address, downloads)
        address, target = shown(address), folder / f"{table}.csv"
        _place(path, target, address)
        _check_header(target, table, address)
        checksums[target.name] = storage.digest(target, "sha256")
        if path.parent == downloads / UNPACKED:
            path.unlink()  # saves disk space; the archive is still there
    return RawOutbrain(
        dataset=name,
        files=tuple(checksums),
        tables={table: f"{table}.csv" for table in COLUMNS},
        source={
            "address": shown(source) or f"{COMPETITION}/data",
            "sha256": checksums,
            "licence": LICENCE,
            "citation": f"Outbrain Click Prediction. Kaggle, 2016. {COMPETITION}",
        },
    )


def _token() -> Token:
    """Kaggle's token, from where its own client takes it."""
    # A secret that a cluster sets often ends with a newline.
    user, key = (os.environ.get(name, "").strip() for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"))
    if user and key:
        return Token((user, key), "KAGGLE_USERNAME and KAGGLE_KEY")
    path = Path(os.environ.get("KAGGLE_CONFIG_DIR") or "~/.kaggle").expanduser() / "kaggle.json"
    try:
        content = json.loads(path.read_bytes())
        return Token((str(content["username"]), str(content["key"])), str(path))
    except FileNotFoundError:
        raise UserError(
            f"--source: empty means Kaggle, which needs a token: set KAGGLE_USERNAME and KAGGLE_KEY, or make "
            f"{path}; else get the files from {COMPETITION}/data and give their folder or archive"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):  # whose texts might show the token
        raise UserError(f'{path}: is no readable {{"username": ..., "key": ...}}') from None


def _kaggle_file(address: str, downloads: Path, token: Token) -> Path:
    path = downloads / storage.file_name(address)
    try:
        storage.fetch(address, path, token.login)
    except AccessError as error:
        mend = f"the token of {token.origin} is not valid; make a new one in Kaggle's settings"
        if error.code == 403:
            mend = f"with the account of {token.origin}, first accept the rules at {COMPETITION}/rules"
        raise UserError(f"{address}: Kaggle answers {error.code}: {mend}") from None
    return path


def _from_kaggle(downloads: Path, token: Token) -> list[str]:
    """Addresses of the competition's files."""
    address = API.format("list")
    try:
        content = json.loads(_kaggle_file(address, downloads, token).read_bytes())
        entries = content["files"] if isinstance(content, dict) else content  # newer and older answers
        return [f"{API.format('download')}/{entry['name']}" for entry in entries]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{address}: the answer is not a list of files; give a copy as --source") from None


def _addresses(source: str, downloads: Path) -> list[str]:
    """The files of a folder, or of an archive, whose tables are then in ``downloads``."""
    path = storage.local_path(source)
    if path is not None and not path.exists():
        raise UserError(f"--source {source}: no such file or folder")
    if path.is_dir() if path is not None else source.endswith("/") and not source.startswith("http"):
        return storage.list_folder(source)
    unpacked = downloads / UNPACKED
    unpacked.mkdir(parents=True, exist_ok=True)
    with archives.members(storage.obtain(source, downloads), shown(source)) as members:
        files = {storage.file_name(name): member for name, member in members.items()}
        for file in filter(_table, files):
            files[file].write(unpacked / file, source)
        return [str(unpacked / file) for file in files]


def _table(address: str) -> str | None:
    """The table that a file holds, by its name."""
    file = storage.file_name(address)
    stem = next((file.removesuffix(suffix) for suffix in SUFFIXES if file.endswith(suffix)), "")
    return OTHER_NAMES.get(stem, stem if stem in COLUMNS else None)


def _choose(addresses: list[str], source: str) -> dict[str, str]:
    """The address of each table."""
    # The preferred suffix sorts last, and so wins.
    ranked = sorted(addresses, key=lambda address: [address.endswith(suffix) for suffix in SUFFIXES])
    found = {table: address for address in ranked if (table := _table(address))}
    if missing := [table for table in COLUMNS if table not in found]:
        names = sorted(map(storage.file_name, addresses))
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        raise UserError(
            f"{source}: missing {', '.join(missing)} (as *{', *'.join(SUFFIXES)}); there is "
            f"{', '.join(names[:20]) or 'nothing'}{more}; all files are at {COMPETITION}/data"
        )
    return {table: found[table] for table in COLUMNS}


def _place(path: Path, target: Path, address: str) -> None:
    """Writes a table, compressed or not, to ``target``; by its content, as names may lie."""
    with open(path, "rb") as stream:
        start = stream.read(4)
    if start == b"PK\x03\x04":
        with archives.members(path, address) as members:
            tables = [member for file, member in members.items() if _table(file) == target.stem]
            if not tables:
                raise UserError(f"{address}: holds {', '.join(members)}, not {target.name}")
            tables[0].write(target, address)
    else:
        # A copy, not a link: an edit of the user's file must not change what was checksummed.
        opener = gzip.open if start[:2] == b"\x1f\x8b" else open
        with archives.errors(address):
            archives.Member(path.stat().st_size, partial(opener, path, "rb")).write(target, address)


def _check_header(path: Path, table: str, address: str) -> None:
    with open(path, "rb") as stream:
        line = stream.readline(1 << 16).decode("utf-8-sig", errors="replace").strip()
        rows = bool(stream.read(1))
    if missing := [column for column in COLUMNS[table] if column not in line.split(",")]:
        raise UserError(
            f"{address}: no column {', '.join(missing)}; the first line is {line[:200]!r}, "
            f"expected {','.join(COLUMNS[table])}"
        )
    if not rows:
        raise UserError(f"{address}: a header and no rows")
