"""Labelled images: found in any of the usual layouts, checked, decoded once, split, normalised, augmented."""

from __future__ import annotations

from peft_noah.data.images import ImageSplit
from peft_noah.data.listings import Listing, Listings
from peft_noah.data.load import bundled_backbone, bundled_task, load_splits, read_listings
from peft_noah.data.preprocessing import Normalizer, Preprocessing
from peft_noah.data.splits import Splits, build_splits

__all__ = [
    "ImageSplit",
    "Listing",
    "Listings",
    "Normalizer",
    "Preprocessing",
    "Splits",
    "build_splits",
    "bundled_backbone",
    "bundled_task",
    "load_splits",
    "read_listings",
]
