"""What the files of a run folder are called; :mod:`peft_noah.run.folder` says what they hold."""

from __future__ import annotations

import re

SETTINGS, STAGES, RESULTS, LOCKS = "settings.json", "stages.json", "results", ".locks"
SUPERNET, SEARCH, RANDOM_SEARCH = "supernet", "search.json", "random-search.json"
RACE, RACE_WEIGHTS = "race.json", "race"
BEST, FIGURES = "best", "figures"
#: beside the adapter of a design: what was asked for
DESIGN = "design.json"
LOG, LOGS, CHECKPOINTS, TRACKING = "log.jsonl", "logs", "checkpoints", "tracking"
#: the lock under which the stages that several methods need are done
SHARED = "supernet-and-search"


def slug(name: str) -> str:
    """The name of a method or training as a file is called: small letters and digits, hyphens between."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
