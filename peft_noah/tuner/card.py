"""What the card that PEFT writes beside an adapter does not say: how to load it, and what it is."""

from __future__ import annotations

import os
from collections.abc import Mapping

from huggingface_hub import ModelCard

from peft_noah.formatting import code, one_line
from peft_noah.jsonfile import write_atomically
from peft_noah.tuner.labels import architecture_table

TAGS = ("peft", "noah")
#: by what a family reads: the task that its adapters are for, and the class of transformers that has the models
TASKS = {
    "images": ("image-classification", "AutoModelForImageClassification"),
    "texts": ("text-classification", "AutoModelForSequenceClassification"),
}
#: most classes that an adapter or a card names
MAX_LABELS = 100_000


def plugin_imports(plugins: Mapping[str, str]) -> str:
    """Lines of Python that import what defines the prompt modules of an adapter from outside the package, by row.

    ``plugins`` has been read by `peft_noah.plugins.read_plugins`, so that nothing but names of modules stands in it.
    """
    rows = {module: [row for row in plugins if plugins[row] == module] for module in plugins.values()}
    return "".join(f"import {module}  # registers {', '.join(names)}\n" for module, names in rows.items())


def complete_card(
    folder: str | os.PathLike[str],
    base_model: str | None,
    architecture: object,
    factors: Mapping[str, float],
    plugins: Mapping[str, str] | None = None,
    reads: str = "images",
) -> None:
    """Make the card that PEFT has just written beside an adapter say how to load it and what it is.

    ``factors`` are those of its updates; the card names them where one is not 1. ``plugins`` are the Python modules to
    import, by row. ``reads`` is what the backbone reads.

    PEFT's own card knows nothing of NOAH, and PEFT drops the tags of a card that was there before. A README.md that is
    no card of PEFT is left alone.
    """
    path = os.path.join(folder, "README.md")
    if architecture is None or not os.path.isfile(path):
        return
    card = ModelCard.load(path, ignore_metadata_errors=True)
    if card.data.library_name != "peft":
        return
    task, model_class = TASKS[reads]
    card.data.tags = list(dict.fromkeys([*TAGS, task, *(card.data.tags or ())]))
    card.data.pipeline_tag = card.data.pipeline_tag or task
    if "import peft_noah" not in card.text:
        snippet = _how_to_load(base_model, model_class, plugins or {})
        table_of_dims = architecture_table(architecture)
        if any(factor != 1.0 for factor in factors.values()):
            named = ", ".join(f"{code(name)} {factor:g}" for name, factor in factors.items())
            table_of_dims += f"\n\nFactors of the updates: {named}."
        card.text = f"\n# NOAH adapter\n\n{snippet}\n\n## Architecture\n\n{table_of_dims}\n\n{card.text.lstrip()}"
    write_atomically(path, str(card))


def _how_to_load(base_model: str | None, model_class: str, plugins: Mapping[str, str]) -> str:
    return f"""```python
import peft_noah  # registers the method NOAH with PEFT
{plugin_imports(plugins)}
from peft import PeftModel
from transformers import {model_class}

model = {model_class}.from_pretrained(
    {one_line(base_model or "path/to/the/backbone")!r},
    num_labels=...,  # as many as the adapter was trained on: its classifier comes with it
    ignore_mismatched_sizes=True,
)
model = PeftModel.from_pretrained(model, "path/to/this/folder").eval()
```"""
