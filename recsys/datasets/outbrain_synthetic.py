"""Raw files in the formats of Kaggle's Outbrain Click Prediction, with a planted reason for each click.

What an ad is worth in a display (one view of one page) is a sum of three parts:

* topic: whether the promoted document has the topic of the document viewed. Topics, categories and entities
  of both documents show it, so their similarities do;
* context: what the advertiser is worth on this platform, and the campaign in this country. Both are tables
  of random numbers, so that only a model that lets two features interact can learn them;
* quality: of the ad itself, which its click rate shows.

The ad with the highest worth plus Gumbel noise is clicked: a multinomial logit (McFadden, 1974).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from recsys import storage, transfer
from recsys.outbrain_tables import COLUMNS, EPOCH_MS, MISSING
from recsys.raw_data import RawOutbrain
from recsys.step import UserError

NAMES = ("outbrain_synthetic",)
BLOCK = 1 << 16  # displays or documents at once: arrays of about 6 MB
BYTES = {"displays": 160, "documents": 260, "ads": 25}  # in all files together, about
DAY = 86_400_000  # milliseconds
DAYS, TEST_DAYS = 13, 15  # the displays of clicks_train are of days 0..12, those of clicks_test of 0..14
UNSEEN = 0.25  # displays of the (absent) clicks_test, which events.csv has too, per display of clicks_train
SIZES = (0.14, 0.14, 0.22, 0.12, 0.18, 0.05, 0.05, 0.03, 0.03, 0.02, 0.02)  # of displays with 2..12 ads
MOST = 12
TARGETED = 0.4  # share of the ads that are picked for the topic of the document
SKEW = 1.6  # popularity of users, documents and ads: their rank is uniform ** SKEW
PLATFORMS = (0.4, 0.5, 0.1)  # desktop, mobile, tablet
PLACES = {
    **{"US>CA>803": 0.2, "US>NY>501": 0.15, "US>SC>519": 0.1, "US>TX": 0.1, "GB>H9": 0.1, "GB": 0.05},
    **{"CA>ON": 0.07, "CA>BC": 0.05, "AU>02": 0.05, "AU>07": 0.03, "SG": 0.03, "SG>00": 0.02, "IN>16": 0.05},
}
COUNTRY = np.unique([place[:2] for place in PLACES], return_inverse=True)[1]
LISTED = 5  # topics, categories or entities of a document, at most
PER_TOPIC = 12  # entities
ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)  # number * odd looks like a hash and has no collisions


@dataclass(frozen=True)
class Options:
    """Sizes and structure.

    Args:
        displays: with clicks; each has 2 to 12 ads (5 on average), so the default makes 300 thousand rows.
        documents, ads, campaigns, advertisers, users, topics: how many of each.
        topic, context, quality: weight of each part of an ad's worth.
        noise: scale of the Gumbel noise; 0 makes the click certain.
        shuffle_clicks: any ad of a display is clicked, all alike; everything else stays the same.
    """

    displays: int = 60_000
    documents: int = 4000
    ads: int = 2000
    campaigns: int = 200
    advertisers: int = 40
    users: int = 20_000
    topics: int = 30
    topic: float = 2.5
    context: float = 2.0
    quality: float = 1.0
    noise: float = 1.0
    shuffle_clicks: bool = False

    def __post_init__(self) -> None:
        least = {"ads": 2 * MOST, "topics": LISTED}
        for field in fields(self):
            value, low = getattr(self, field.name), least.get(field.name, 1 if field.type is int else 0)
            if value < low:
                raise UserError(f"--options: {field.name} must be {low} or more, not {value}")


@dataclass(frozen=True)
class World:
    """The planted structure: arrays with one entry per document, ad or user (id - 1)."""

    topic: np.ndarray  # of each document
    document: np.ndarray  # of each ad, as the next three
    campaign: np.ndarray
    advertiser: np.ndarray
    quality: np.ndarray
    by_platform: np.ndarray  # (3, advertisers), standard normal like quality
    by_country: np.ndarray  # (countries, campaigns)
    place: np.ndarray  # of each user: index into PLACES
    platform: np.ndarray  # of each user


@dataclass(frozen=True)
class Displays:
    """A block of displays: ids less 1, and arrays of shape (displays, 12), of which ``size`` are filled."""

    display: np.ndarray
    user: np.ndarray
    document: np.ndarray
    timestamp: np.ndarray
    platform: np.ndarray
    size: np.ndarray
    ads: np.ndarray  # (displays, 12), ascending
    worth: np.ndarray  # (displays, 12), without noise
    clicked: np.ndarray  # place of the clicked ad


def fetch(name: str, source: str, options: Options, seed: int, folder: Path, downloads: Path) -> RawOutbrain:
    """Writes the seven files into ``folder``, block by block; equal seeds give equal bytes.

    Args:
        source: must be empty: nothing is downloaded.
        downloads: not used.
    """
    if source:
        raise UserError(f"--source {source}: --dataset {name} is generated; leave --source empty")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more")
    size = sum(getattr(options, unit) * each for unit, each in BYTES.items())
    transfer.require_space(folder, size, f"writing {options.displays:,} displays")
    write(folder, options, seed)
    files = {table: f"{table}.csv" for table in COLUMNS}
    return RawOutbrain(
        dataset=name,
        files=tuple(files.values()),
        tables=files,
        source={
            "address": "generated",
            "sha256": {file: storage.digest(folder / file, "sha256") for file in files.values()},
            "seed": seed,
            "options": asdict(options),
            "licence": "Generated by this project (Apache-2.0): no person's data, no restriction.",
            "citation": "",
        },
    )


def plan(options: Options, seed: int) -> World:
    """Draws the planted structure."""
    rng = np.random.default_rng((seed, 0))
    campaign = rng.integers(0, options.campaigns, options.ads)
    return World(
        topic=rng.integers(0, options.topics, options.documents),
        document=rng.integers(0, options.documents, options.ads),
        campaign=campaign,
        advertiser=rng.integers(0, options.advertisers, options.campaigns)[campaign],
        quality=rng.standard_normal(options.ads),
        by_platform=rng.standard_normal((len(PLATFORMS), options.advertisers)),
        by_country=rng.standard_normal((COUNTRY.max() + 1, options.campaigns)),
        place=rng.choice(len(PLACES), options.users, p=list(PLACES.values())),
        platform=rng.choice(len(PLATFORMS), options.users, p=PLATFORMS),
    )


def generate(options: Options, world: World, seed: int, unseen: bool = False) -> Iterator[Displays]:
    """Yields the displays of clicks_train, or the ``unseen`` ones, by id, which is by time."""
    rng = np.random.default_rng((seed, 2 if unseen else 1))
    first, total, days = 0, options.displays, DAYS
    if unseen:
        first, total, days = options.displays, int(options.displays * UNSEEN), TEST_DAYS
    for start in range(0, total, BLOCK):
        index = np.arange(start, min(start + BLOCK, total))
        rows = len(index)
        time = (index + rng.random(rows)) * (days * DAY / total)
        user, document = _popular(rng, options.users, rows), _popular(rng, options.documents, rows)
        # Now and then a user takes another device.
        other = rng.choice(len(PLATFORMS), rows, p=PLATFORMS)
        platform = np.where(rng.random(rows) < 0.1, other, world.platform[user])
        size = 2 + rng.choice(len(SIZES), rows, p=SIZES)
        topic, country = world.topic[document][:, None], COUNTRY[world.place[user]][:, None]
        ads = _ads(rng, world, topic, size)
        context = world.by_platform[platform[:, None], world.advertiser[ads]]
        context = (context + world.by_country[country, world.campaign[ads]]) * np.sqrt(0.5)
        worth = options.context * context + options.quality * world.quality[ads]
        worth += options.topic * (world.topic[world.document[ads]] == topic)
        gumbel = rng.gumbel(size=worth.shape)
        score = gumbel if options.shuffle_clicks else worth + options.noise * gumbel
        clicked = np.where(np.arange(MOST) < size[:, None], score, -np.inf).argmax(1)
        timestamp = time.astype(np.int64)
        yield Displays(first + index, user, document, timestamp, platform, size, ads, worth, clicked)


def _ads(rng: np.random.Generator, world: World, topic: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Different ads for each display, ascending, some of them picked for its ``topic``."""
    count, shape, place = len(world.document), (len(topic), MOST), np.arange(MOST)
    topics = world.topic[world.document]
    order = np.argsort(topics, kind="stable")
    start, end = np.searchsorted(topics[order], [topic, topic + 1])
    targeted = (rng.random(shape) < TARGETED) & (start < end)
    picked = order[np.minimum(start + _popular(rng, end - start, shape), count - 1)]
    ads = np.where(targeted, picked, _popular(rng, count, shape))
    while True:
        # Numbers beyond all ads mark places without one, so that they stay behind.
        ads = np.sort(np.where(place < size[:, None], ads, count + place), axis=1)
        twice = np.nonzero(ads[:, 1:] == ads[:, :-1])
        if not len(twice[0]):
            return np.minimum(ads, count - 1)
        ads[twice] = rng.integers(0, count, len(twice[0]))


def _popular(rng: np.random.Generator, count: int | np.ndarray, shape: int | tuple[int, ...]) -> np.ndarray:
    return (rng.random(shape) ** SKEW * count).astype(np.int64)


def write(folder: Path, options: Options, seed: int) -> None:
    """Writes ``NAME.csv`` of each of the seven tables."""
    world, rng = plan(options, seed), np.random.default_rng((seed, 3))
    with contextlib.ExitStack() as stack:
        out = {}
        for table, names in COLUMNS.items():
            out[table] = stack.enter_context(open(folder / f"{table}.csv", "w", encoding="ascii"))
            out[table].write(",".join(names) + "\n")
        promoted = (np.arange(options.ads), world.document, world.campaign, world.advertiser)
        out["promoted_content"].writelines(_lines("%d,%d,%d,%d\n", *(column + 1 for column in promoted)))
        for start in range(0, options.documents, BLOCK):
            topic = world.topic[start : start + BLOCK]
            document = start + 1 + np.arange(len(topic))
            out["documents_meta"].writelines(_meta(rng, options, document))
            for kind in ("topics", "entities", "categories"):
                out[f"documents_{kind}"].writelines(_listed(rng, options, kind, document, topic))
        for block in generate(options, world, seed):
            out["clicks_train"].writelines(_clicks(block))
            out["events"].writelines(_events(rng, world, block))
        for block in generate(options, world, seed, unseen=True):
            out["events"].writelines(_events(rng, world, block))


def _lines(template: str, *columns: np.ndarray) -> Iterator[str]:
    return map(template.__mod__, zip(*(column.tolist() for column in columns), strict=True))


def _clicks(block: Displays) -> Iterator[str]:
    row, place = np.nonzero(np.arange(MOST) < block.size[:, None])
    clicked = place == block.clicked[row]
    return _lines("%d,%d,%d\n", block.display[row] + 1, block.ads[row, place] + 1, clicked)


def _events(rng: np.random.Generator, world: World, block: Displays) -> Iterator[str]:
    uuid = (block.user.astype(np.uint64) + 1) * ODD[0] % (1 << 56)
    document, rows = block.document + 1, len(block.user)
    platform = np.where(rng.random(rows) < 0.01, MISSING, (block.platform + 1).astype(str))
    place = np.where(rng.random(rows) < 0.02, "", np.array(list(PLACES))[world.place[block.user]])
    columns = block.display + 1, uuid, document, block.timestamp, platform, place
    return _lines("%d,%014x,%d,%d,%s,%s\n", *columns)


def _meta(rng: np.random.Generator, options: Options, document: np.ndarray) -> Iterator[str]:
    """Rows of documents_meta: 2 % of the documents have none, others have gaps, old or future times."""
    document = document[rng.random(len(document)) >= 0.02]
    rows = len(document)
    kind, days = rng.random(rows), rng.exponential(60, rows)
    days = np.where(kind < 0.02, rng.uniform(15 * 365, 46 * 365, rows), days)
    days = np.where(kind > 0.98, -rng.uniform(30, 900, rows), days)
    time = (EPOCH_MS + DAYS * DAY - days * DAY).astype("datetime64[ms]").astype("datetime64[s]").astype(str)
    source = rng.integers(0, options.documents // 40 + 1, rows)  # each belongs to one publisher
    columns = [(source + 1).astype(str), (source // 4 + 1).astype(str), np.char.replace(time, "T", " ")]
    for number, (gap, share) in enumerate(((MISSING, 0.01), ("", 0.05), ("", 0.1))):
        columns[number] = np.where(rng.random(rows) < share, gap, columns[number])
    return _lines("%d,%s,%s,%s\n", document, *columns)


def _listed(
    rng: np.random.Generator, options: Options, kind: str, document: np.ndarray, topic: np.ndarray
) -> Iterator[str]:
    """0 to 5 different topics, categories or entities per document: its own first, then less certain ones."""
    shape = (len(document), LISTED)
    choices, own = {
        "topics": (options.topics, topic),
        "categories": (max(LISTED, options.topics // 3), topic // 3),  # each is of about three topics
        "entities": (PER_TOPIC, rng.integers(0, PER_TOPIC, len(document))),  # each is of one topic
    }[kind]
    # Steps of at least 1 whose sum is below ``choices``: no value comes twice.
    steps = rng.integers(1, (choices - 1) // (LISTED - 1) + 1, shape)
    steps[:, 0] = own
    values = steps.cumsum(1) % choices
    certain = rng.uniform(0.5, 0.98, shape)
    certain[:, 1:] *= 0.5
    row, place = np.nonzero(np.arange(LISTED) < rng.integers(0, LISTED + 1, len(document))[:, None])
    rows, value, confidence = document[row], values[row, place], certain.cumprod(1)[row, place]
    if kind != "entities":
        return _lines("%d,%d,%.6f\n", rows, value + (1000 if kind == "categories" else 0), confidence)
    strange = (place > 1) & (rng.random(len(row)) < 0.5)
    owner = np.where(strange, rng.integers(0, options.topics, len(row)), topic[row])
    number = (owner * PER_TOPIC + value + 1).astype(np.uint64)
    return _lines("%d,%016x%016x,%.6f\n", rows, *(number * odd for odd in ODD), confidence)
