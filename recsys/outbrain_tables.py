"""The seven files of Kaggle's Outbrain Click Prediction: names and columns.

https://www.kaggle.com/c/outbrain-click-prediction/data
"""

from collections.abc import Mapping

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "clicks_train": ("display_id", "ad_id", "clicked"),
    "events": ("display_id", "uuid", "document_id", "timestamp", "platform", "geo_location"),
    "promoted_content": ("ad_id", "document_id", "campaign_id", "advertiser_id"),
    "documents_meta": ("document_id", "source_id", "publisher_id", "publish_time"),
    "documents_topics": ("document_id", "topic_id", "confidence_level"),
    "documents_entities": ("document_id", "entity_id", "confidence_level"),
    "documents_categories": ("document_id", "category_id", "confidence_level"),
}
MISSING = "\\N"  # an empty field is missing too
EPOCH_MS = 1_465_876_799_998  # 2016-06-14 03:59:59.998 UTC, from which events.timestamp counts milliseconds
