"""The designs that a race begins with, at about equal numbers of parameters.

The first is what a careful person would do by hand: LoRA on every Linear of a block. The others differ from it in how strong
their update is, and in what else a block has. At equal parameters the sites are worth several points on most tasks, so all
designs have all sites. Strengths are relative to the backbone's width: a scale of 16 is the best on one of 128 and diverges on
one of 384. Tasks differ too, by up to 8 times. A race of few designs takes the first of these.

All of them start alike. A design whose classifier is fitted first is far ahead in the first rungs and wins, but was not the
best at the end, where this was measured.
"""

from __future__ import annotations

from peft_noah.searching.design import Design


def _all_sites(strength: float) -> dict[str, object]:
    return {"target_modules": "all-linear", "lora_strength": strength}


#: the default first
PORTFOLIO = (
    Design("all sites", {"lora": 2}, _all_sites(1.0)),
    Design("all sites, 4 x as strong", {"lora": 2}, _all_sites(4.0)),
    Design("all sites, 1/4 as strong", {"lora": 2}, _all_sites(0.25)),
    Design("LoRA, Adapter and tokens", {"lora": 1, "adapter": 8, "vpt": 5}, _all_sites(1.0)),
)
