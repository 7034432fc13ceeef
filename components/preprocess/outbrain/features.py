"""The 29 features of NVIDIA's Wide & Deep reference for Outbrain: buckets, embedding sizes, sources.

``DeepLearningExamples/TensorFlow2/Recommendation/WideAndDeep/data/outbrain/features.py``. A suffix ``_promo``
says that a feature is of the promoted document (the ad's); without it, of the document that is viewed.
"""

from collections.abc import Mapping

# Feature: (hash buckets, embedding size).
ONEHOT: Mapping[str, tuple[int, int]] = {
    "ad_id": (250_000, 128),
    "document_id": (300_000, 128),
    "platform": (4, 19),
    "document_id_promo": (100_000, 128),
    "campaign_id": (5000, 128),
    "advertiser_id": (2500, 64),
    "source_id": (4000, 64),
    "geo_location": (2500, 64),
    "geo_location_country": (300, 64),
    "geo_location_state": (2000, 64),
    "publisher_id": (1000, 64),
    "source_id_promo": (4000, 64),
    "publisher_id_promo": (1000, 64),
}
MULTIHOT: Mapping[str, tuple[int, int]] = {
    "topic_id_list": (350, 64),
    "entity_id_list": (10_000, 64),
    "category_id_list": (100, 64),
}
MAX_HOTNESS = 3
LISTS = {"topic_id_list": "topics", "entity_id_list": "entities", "category_id_list": "categories"}

GEO_PREFIX = {"geo_location": None, "geo_location_country": 2, "geo_location_state": 5}  # characters
SIMILARITY = {
    "document_id_document_id_promo_sim_categories": "categories",
    "document_id_document_id_promo_sim_topics": "topics",
    "document_id_document_id_promo_sim_entities": "entities",
}
# Feature: (key, fewest train rows of a key whose click rate is told; 0 below).
CLICK_RATE = {
    "document_id_promo_ctr": ("document_id_promo", 5),
    "publisher_id_promo_ctr": ("publisher_id_promo", 10),
    "source_id_promo_ctr": ("source_id_promo", 10),
    "ad_id_ctr": ("ad_id", 5),
    "advertiser_id_ctr": ("advertiser_id", 10),
    "campaign_id_ctr": ("campaign_id", 10),
}
COUNT = {"document_id_promo_count": "document_id_promo", "ad_id_count": "ad_id"}
DAYS = {
    "publish_time_days_since_published": "publish_time",
    "publish_time_promo_days_since_published": "publish_time_promo",
}
NUMERICAL = (*SIMILARITY, *CLICK_RATE, *COUNT, *DAYS)

# What a request tells: whole numbers, -1 where missing, and the text ``geo_location``, "" where missing.
# ``timestamp`` and ``platform`` are as in events.csv, ``publish_time`` is in ms since 1970 (UTC).
REQUEST = (
    "ad_id", "document_id", "platform", "timestamp", "geo_location",
    "source_id", "publisher_id", "publish_time", "document_id_promo", "campaign_id", "advertiser_id",
    "source_id_promo", "publisher_id_promo", "publish_time_promo",
)  # fmt: skip
LABEL, GROUP, ITEM = "clicked", "display_id", "ad_id"


def places(feature: str) -> list[str]:
    """The columns in which the workflow gives a multi-hot feature: one per place, -1 after the list's end."""
    return [f"{feature}_{place}" for place in range(MAX_HOTNESS)]


def buckets(feature: str, most: int) -> int:
    """The feature's number of hash buckets, at most ``most`` unless that is 0."""
    number = {**ONEHOT, **MULTIHOT}[feature][0]
    return min(number, most) if most else number
