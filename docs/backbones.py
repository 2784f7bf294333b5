"""Write the tables of backbones.md: every family that is known is tried, as `peft-noah check` tries a model of the user's.

    python docs/backbones.py

Families whose packages are missing (timm) keep the row that they had. What was tried must agree with what the families'
entries say, which is what `peft-noah backbones` lists.
"""

import re
import sys
from pathlib import Path

import torch
import transformers
from peft import get_peft_model
from transformers import CONFIG_MAPPING

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families import FAMILIES, SIDE, make_family  # noqa: E402

from peft_noah import Architecture, NoahConfig, check_backbone  # noqa: E402
from peft_noah.run.checking import Family, build_small, families  # noqa: E402
from peft_noah.tuner.backbones import BACKBONES  # noqa: E402
from peft_noah.tuner.backbones.images import read_images  # noqa: E402
from peft_noah.tuner.prompts import PROMPT_MODULES  # noqa: E402

PAGE = Path(__file__).with_suffix(".md")
MARK = "<!-- {} by docs/backbones.py -->"


def try_family(family: Family) -> list[str] | None:
    """Cells of its row: for each prompt module, the fast forward and images of another size; None: it cannot be built."""
    if family.name == "timm_wrapper" and family.name not in FAMILIES:
        return None
    model, kind = (
        build_small(CONFIG_MAPPING[family.name]()) if family.name not in FAMILIES else (make_family(family.name), "")
    )
    report = check_backbone(model)
    assert not report.problems, (family.name, report.problems)
    assert (report.modules["vpt"] is None) == (family.tokens is None), (family.name, report.modules)
    assert (report.reason is None) == (family.fast is None), (family.name, report.reason)
    name = f"`{family.name}`" + (" (1)" if kind is None else "")
    cells = [name, *("–" if reason else "yes" for reason in report.modules.values())]
    return [*cells, "–" if report.reason else "yes", "" if not family.sizes else reads_other_sizes(model, family)]


def reads_other_sizes(model, family: Family) -> str:
    if family.name not in FAMILIES or family.sizes == "no":
        return "–" if family.sizes == "no" else "yes"
    side = 3 * SIDE // 2
    read_images(model, (side, side))
    rows = Architecture.uniform(len(BACKBONES[family.name].block_names(model)), lora=2)
    get_peft_model(model, NoahConfig(architecture=rows))(pixel_values=torch.zeros(2, 3, side, side))
    return "yes"


def table() -> str:
    head = ["family", *(f"`{row}`" for row in PROMPT_MODULES), "fast path", "other sizes"]
    kept = {name: line for line, name in re.findall(r"^(\| `([\w-]+)`.*)$", PAGE.read_text(), re.M)}
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for family in (family for family in families() if not family.name.endswith("_vision_model")):  # as their pairs
        cells = try_family(family)
        lines.append(kept[family.name] if cells is None else f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reasons() -> str:
    found = [family for family in families() if not family.name.endswith("_vision_model")]
    lines = []
    for what, of in (("VPT", "tokens"), ("The fast path", "fast")):
        for reason in dict.fromkeys(getattr(family, of) for family in found if getattr(family, of)):
            names = ", ".join(f"`{family.name}`" for family in found if getattr(family, of) == reason)
            lines.append(f"- {what} is not for {names}: {reason}.")
    return "\n".join(lines)


def main() -> None:
    transformers.logging.set_verbosity_error()
    text = PAGE.read_text()
    for name, part in (("table", table()), ("reasons", reasons())):
        start, end = MARK.format(name), MARK.format(f"end of {name}")
        text = text[: text.index(start) + len(start)] + f"\n{part}\n" + text[text.index(end) :]
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
