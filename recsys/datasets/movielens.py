"""MovieLens ratings of GroupLens, 100 thousand to 32 million (https://grouplens.org/datasets/movielens/).

F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from recsys import archives, storage
from recsys.raw_data import RawRatings
from recsys.step import UserError
from recsys.transfer import shown

log = logging.getLogger(__name__)

ADDRESS = "https://files.grouplens.org/datasets/movielens/{}"
CITATION = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872"
)
LICENCE = (
    "MovieLens data of GroupLens Research, University of Minnesota: for research, with acknowledgement (cite "
    "the paper below) and without implying endorsement; no commercial use without GroupLens's permission; "
    "{redistribution}. No warranty. The full terms are at {readme}."
)


@dataclass(frozen=True)
class Release:
    """One published archive.

    Args:
        archive: its file name at GroupLens.
        md5: of the archive; ``None`` where only the ``.md5`` file beside it says.
        ratings: base name of the ratings file in it.
    """

    archive: str
    md5: str | None
    ratings: str
    separator: str = ","
    header: bool = True


RELEASES = {
    "movielens-100k": Release("ml-100k.zip", "0e33842e24a9c977be4e0107933c0723", "u.data", "\t", False),
    "movielens-1m": Release("ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906", "ratings.dat", "::", False),
    "movielens-10m": Release("ml-10m.zip", "ce571fd55effeba0271552578f2648bd", "ratings.dat", "::", False),
    "movielens-20m": Release("ml-20m.zip", "cd245b17a1ae2cc31bb14903e1204af3", "ratings.csv"),
    "movielens-25m": Release("ml-25m.zip", "6b51fb2759a8657d3bfcbfc42b592ada", "ratings.csv"),
    "movielens-32m": Release("ml-32m.zip", None, "ratings.csv"),
}
NAMES = tuple(RELEASES)
HEADER = ["userId", "movieId", "rating", "timestamp"]


@dataclass(frozen=True)
class Options:
    """MovieLens has no options: the name says it all."""


def fetch(name: str, source: str, options: Options, seed: int, folder: Path, downloads: Path) -> RawRatings:
    """Puts the ratings file and the README of release ``name`` into ``folder``.

    Args:
        source: address of a copy of the archive; empty for GroupLens's own. A copy is checked against the
            ``.md5`` beside it if there is one, GroupLens's archive against the known MD5.
        seed: not used.
        folder: where the files go.
        downloads: where a download lives until the step has succeeded.
    Raises:
        UserError: the archive cannot be had, is damaged, or is not this release.
    """
    release = RELEASES[name]
    address = source or ADDRESS.format(release.archive)
    expected = (release.md5 if not source else None) or storage.published_md5(address)
    if not source and expected is None:
        raise UserError(f"{address}.md5: missing, so the archive cannot be verified; give a copy as --source")
    archive = storage.obtain(address, downloads)
    address = shown(address)
    md5 = storage.digest(archive, "md5")
    if expected and md5 != expected:
        if downloads in archive.parents:
            archive.unlink()  # else a rerun would resume a file that is wrong
        raise UserError(f"{address}: MD5 is {md5}, expected {expected}: damaged or changed; get it again")
    log.info("%s: MD5 %s %s", address, md5, "verified" if expected else "(nothing to compare it with)")
    _extract(archive, address, name, folder)
    _check_first_line(folder / release.ratings, f"{address}: {release.ratings}", name)
    return RawRatings(
        dataset=name,
        files=(release.ratings,),
        format="csv",
        columns=dict(
            zip(("user", "item", "rating", "timestamp"), HEADER if release.header else range(4), strict=True)
        ),
        separator=release.separator,
        header=release.header,
        source={"address": address, "md5": md5, "licence": _licence(name), "citation": CITATION},
    )


def _licence(name: str) -> str:
    kind = "txt" if name in ("movielens-100k", "movielens-1m") else "html"
    # Among the releases here, only the README of 32m allows passing the data on.
    free = name == "movielens-32m"
    return LICENCE.format(
        redistribution="may be passed on under the same terms" if free else "no redistribution without it",
        readme=ADDRESS.format(RELEASES[name].archive.replace(".zip", f"-README.{kind}")),
    )


def _extract(archive: Path, address: str, name: str, folder: Path) -> None:
    """Takes the ratings file and the README, wherever they lie in the archive, and nothing else."""
    wanted = RELEASES[name].ratings
    with archives.members(archive, address) as members:
        files: dict[str, archives.Member] = {}
        for path in sorted(members, key=lambda path: path.count("/")):
            files.setdefault(PurePosixPath(path).name, members[path])
        if wanted not in files:
            raise UserError(f"{address}: holds no {wanted}, the ratings file of {name}{_instead(files)}")
        for file, member in files.items():
            if file == wanted or PurePosixPath(file).stem == "README":
                member.write(folder / file, address)


def _instead(files: Iterable[str]) -> str:
    """Which releases' ratings files the archive does hold, to tell a mix-up from a foreign archive."""
    others = [name for name, release in RELEASES.items() if release.ratings in files]
    if others:
        return f"; it looks like {' or '.join(others)}: set --dataset to that"
    return f"; it holds {', '.join(sorted(files)[:5]) or 'nothing'}"


def _check_first_line(path: Path, where: str, name: str) -> None:
    """Fails if the file is empty or its first line is not one of release ``name``."""
    release = RELEASES[name]
    with open(path, "rb") as stream:
        line = stream.readline(1 << 16).decode("utf-8", errors="replace").rstrip("\r\n")
        more = bool(stream.read(1))
    if not line:
        raise UserError(f"{where} is empty; get the archive again")
    fields = line.split(release.separator)
    if len(fields) != 4 or (release.header and fields != HEADER):
        header = "after a header" if release.header else "without a header"
        raise UserError(
            f"{where} starts with {line[:60]!r}, which is not {name} (user, item, rating, timestamp, "
            f"separated by {release.separator!r}, {header}); check --dataset"
        )
    if release.header and not more:
        raise UserError(f"{where} holds a header and no ratings; get the archive again")
