"""The model card of an adapter folder: how to load it first, then what it is, how good, and how it was made.

Everything comes in as plain data and may come from strangers: no value can break the YAML, the Markdown or the code.
"""

from __future__ import annotations

import os
import pprint
import re
from urllib.parse import quote

import yaml

from peft_noah.formatting import code, escape, facts, one_line, percent, table
from peft_noah.results.card_data import CardData
from peft_noah.results.statistics import standard_error
from peft_noah.tuner.card import TAGS, TASKS, plugin_imports
from peft_noah.tuner.labels import architecture_table

_INLINE_LABELS = 100  # more would hide the snippet they stand in

# What a Hub id may look like: owner/name, or a name alone.
_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))(?:[A-Za-z0-9_][\w.-]{0,95}/)?[A-Za-z0-9_][\w.-]{0,95}(?<![-.])", re.ASCII)


def model_card(data: CardData) -> str:
    """The text of README.md for an adapter folder, as the Hub and PEFT expect it.

    Examples:
        >>> data = CardData(
        ...     base_model="google/vit-base-patch16-224-in21k",
        ...     architecture={"lora": [8] * 12},
        ...     parameters=294_912,
        ...     head_parameters=7_690,
        ...     labels=["cat", "dog"],
        ...     preprocessing={"size": [224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "resample": "bilinear"},
        ...     recipe="paper",
        ...     task="pets",
        ... )
        >>> model_card(data).splitlines()[:3]
        ['---', 'library_name: peft', 'pipeline_tag: image-classification']
    """
    metadata = yaml.safe_dump(_metadata(data), sort_keys=False, allow_unicode=True, width=10**9)
    sections = {
        "": _snippet(data) + "\n\n" + _inputs(data),
        "Architecture": _architecture(data),
        "Accuracy": _accuracy(data),
        "Training": facts({"recipe": data.recipe, "data": data.task, **data.training}),
        "Search": facts(data.search),
        "Limitations": _limitations(data),
        "Classes": _classes(data),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text)
    title = f"# NOAH adapter for {escape(data.task)}"
    # PEFT adds its own version under this very heading when the folder is saved again, unless it is there.
    versions = "\n".join(f"- {escape(_PACKAGES.get(name, name))} {escape(v)}" for name, v in data.versions.items())
    ending = f"\n\n### Framework versions\n\n{versions}" if versions else ""
    return f"---\n{metadata}---\n\n{title}\n\n{body}{ending}\n"


_PACKAGES = {"peft": "PEFT"}


def _metadata(data: CardData) -> dict[str, object]:
    """The YAML front matter: what the Hub indexes."""
    task, _ = TASKS[f"{data.what}s"]
    metadata = {
        "library_name": "peft",
        "pipeline_tag": task,
        "tags": [*TAGS, task],
    }
    # A folder has no page on the Hub to link to.
    if _is_hub_id(data.base_model):
        metadata["base_model"] = data.base_model
    if data.dataset is not None and _is_hub_id(data.dataset):
        metadata["datasets"] = [data.dataset]
    measured = {split: accuracy[0] for split, accuracy in data.accuracy.items() if accuracy is not None}
    if measured:
        kind = "imagefolder" if data.what == "image" else "text"
        source = {"name": one_line(data.task) or "unnamed", "type": metadata.get("datasets", [kind])[0]}
        results = [
            {
                "task": {"type": task, "name": task.replace("-", " ").title()},
                "dataset": source | {"split": one_line(split)},
                "metrics": [{"type": "accuracy", "name": "Accuracy", "value": round(float(fraction), 6)}],
            }
            for split, fraction in measured.items()
        ]
        metadata["model-index"] = [{"name": f"NOAH adapter for {one_line(data.task)}", "results": results}]
    return metadata


def _is_hub_id(name: str) -> bool:
    # As transformers reads it: a folder of that name goes first.
    return _HUB_ID.fullmatch(name) is not None and not os.path.isdir(name)


def _snippet(data: CardData) -> str:
    named = len(data.labels) <= _INLINE_LABELS
    # repr writes every string on one line and escapes what could end it, so a name stays a name.
    listed = pprint.pformat([one_line(label) for label in data.labels], width=100, compact=True)
    labels = "labels = " + listed.replace("\n", "\n" + " " * 9) + "\n" if named else ""
    classes = "id2label=dict(enumerate(labels))" if named else f"num_labels={len(data.labels)}"
    task, model_class = TASKS[f"{data.what}s"]
    reader = "AutoImageProcessor" if data.what == "image" else "AutoTokenizer"
    pillow = "from PIL import Image\n" if data.what == "image" else ""
    variable = "processor" if data.what == "image" else "tokenizer"
    sample = 'Image.open("image.png").convert("RGB")' if data.what == "image" else '"a text", truncation=True'
    extra = ", interpolate_pos_encoding=True" if data.interpolate_pos_encoding else ""
    answer = "labels[best]" if named else "best"
    return f"""```python
import peft_noah  # registers the method NOAH with PEFT
{plugin_imports(data.plugins)}
import torch
from peft import PeftModel
{pillow}from transformers import {", ".join(sorted((reader, model_class)))}

adapter = {data.adapter!r}
{labels}model = {model_class}.from_pretrained(
    {data.base_model!r},
    {classes},
    ignore_mismatched_sizes=True,  # the classifier comes with the adapter
)
model = PeftModel.from_pretrained(model, adapter).eval()
{variable} = {reader}.from_pretrained(adapter)

inputs = {variable}({sample}, return_tensors="pt")
with torch.inference_mode():
    best = model(**inputs{extra}).logits.argmax(-1).item()
print({answer})
```"""


def _inputs(data: CardData) -> str:
    preprocessing = data.preprocessing
    if data.what == "text":
        return f"The tokenizer cuts texts off behind {preprocessing['max_tokens']:,} tokens, as in training."
    height, width = preprocessing["size"]
    pixels = f"{height} x {width} pixels"
    how = f" ({escape(preprocessing['resample'])})" if preprocessing.get("resample") else ""
    mean, std = (", ".join(f"{value:g}" for value in preprocessing[name]) for name in ("mean", "std"))
    return (
        f"The image processor brings images to {pixels}{how}, scales them to 0 to 1, subtracts the mean ({mean}) and "
        f"divides by the standard deviation ({std}), per channel. Another normalisation gives other, worse answers."
    )


def _architecture(data: CardData) -> str:
    picture = f"\n\n![Dims per block and prompt module]({quote(data.figure)})" if data.figure else ""
    backbone = "ViT" if data.what == "image" else "transformer"
    return (
        f"NOAH (Neural Prompt Search, arXiv 2206.04673) mixes prompt modules in a frozen {backbone}. Dims per block, counted "
        f"from the {data.what}; 0: the block does not carry the module.\n\n"
        f"{architecture_table(data.architecture)}{picture}\n\n"
        f"{data.parameters:,} trainable prompt parameters, and {data.head_parameters:,} of the classifier. "
        f"The backbone, {code(data.base_model)}, is unchanged."
    )


def _accuracy(data: CardData) -> str:
    if not data.accuracy:
        return ""
    rows = [[escape(split), *_measured(measured)] for split, measured in data.accuracy.items()]
    note = f"One run; ± is the binomial standard error over {data.what}s, sqrt(p (1 - p) / n)."
    if None in data.accuracy.values():
        note += f" –: there were no labelled {data.what}s, so it was not measured."
    return table(["split", f"{data.what}s", "top-1 accuracy (%) ± s.e."], rows) + f"\n\n{note}"


def _measured(measured: tuple[float, int] | None) -> list[str]:
    if measured is None:
        return ["0", "–"]
    fraction, images = measured
    return [f"{images:,}", percent(fraction, standard_error(fraction, images))]


def _limitations(data: CardData) -> str:
    points = [
        "It fits this backbone only: its weights mean nothing in another checkpoint, even of the same shape.",
        "`peft_noah` must be imported before it is loaded; without it PEFT stops with `KeyError: 'NOAH'`.",
        f"The accuracy holds for {data.what}s like those it was measured on.",
        f"It takes over the biases of the backbone and of the {data.what}s it was trained on.",
    ]
    if data.search and "validation" in data.accuracy:
        points.append(
            f"The architecture was chosen on the validation {data.what}s, so the accuracy on them is too high"
            + ("." if data.accuracy.get("test") is None else f"; the test {data.what}s chose nothing.")
        )
    return "\n".join(f"- {point}" for point in points)


def _classes(data: CardData) -> str:
    if len(data.labels) <= _INLINE_LABELS:
        return ""
    return "\n".join(f"{index}. {escape(label)}" for index, label in enumerate(data.labels))
