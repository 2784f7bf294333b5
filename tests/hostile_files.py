"""The kinds of file that peft-noah reads, each with good originals and the entry point that loads it.

What `test_hostile_files.py` and `fuzz_files.py` share: a mutated file must be accepted, or refused by a clear ValueError.
"""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import mutate
import PIL.Image
from conftest import make_model
from image_files import SIDE, encode, pixels, write_backbone, write_task
from peft import get_peft_model

from peft_noah import Architecture, NoahConfig, SearchSettings, SearchSpace, search
from peft_noah.data import load_splits
from peft_noah.data.decoding import decode_image
from peft_noah.data.list_files import read_entries
from peft_noah.data.preprocessing import Preprocessing
from peft_noah.experiments.plan import Plan
from peft_noah.experiments.tasks import Task
from peft_noah.jsonfile import dump_json, read_json
from peft_noah.plugins import import_plugins
from peft_noah.results.card import model_card
from peft_noah.results.card_data import CardData
from peft_noah.results.report import MethodResult, RunReport
from peft_noah.run.designs import read_designs
from peft_noah.run.settings import RunSettings
from peft_noah.searching.design import Design
from peft_noah.searching.result import SearchResult
from peft_noah.tuner.adapter_files import load_adapter, read_config

#: most letters in the message of an error
LONGEST_MESSAGE = 20_000


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        file: its name inside the folder that is loaded.
        make: writes a good folder, once, and returns the bytes of good files.
        load: the entry point, given the folder.
        mutators: what breaks a file, each as likely as the others.
        weight: share of all mutated files.
    """

    file: str
    make: Callable[[Path], list[bytes]]
    load: Callable[[Path], object]
    mutators: tuple[mutate.Mutator, ...]
    weight: int


@cache
def _vit():
    return make_model()


ARCHITECTURE = Architecture(lora=[3, 0, 2, 1], adapter=[0, 2, 0, 1], vpt=[2, 3, 0, 0])


def _adapter(folder: Path) -> None:
    for recipe in ("released", "paper"):
        config = NoahConfig(recipe=recipe, architecture=ARCHITECTURE)
        get_peft_model(copy.deepcopy(_vit()), config).save_pretrained(folder)


def _make_config(folder: Path) -> list[bytes]:
    _adapter(folder)
    good = (folder / "adapter_config.json").read_bytes()
    return [good, json.dumps({**NoahConfig(search_space=SearchSpace.vtab(4)).to_dict(), "peft_type": "NOAH"}).encode()]


def _make_weights(folder: Path) -> list[bytes]:
    _adapter(folder)
    return [(folder / "adapter_model.safetensors").read_bytes()]


def _load_config(folder: Path) -> None:
    get_peft_model(copy.deepcopy(_vit()), read_config(folder))


def _make_search(folder: Path) -> list[bytes]:
    settings = SearchSettings(population_size=4, generations=2, num_parents=2, num_crossover=2, num_mutation=2)
    result = search(SearchSpace.vtab(4), lambda a: a.depth("lora"), lambda a: sum(map(sum, a.values())), 200, settings)
    result.save(folder / "search.json")
    return [(folder / "search.json").read_bytes()]


def _load_search(folder: Path) -> None:
    result = SearchResult.load(folder / "search.json")
    result.top(3), result.to_dict(), result.candidates and result.best


_BY_BLOCK = SearchSpace(4, {"lora": (0, 2), "ssf": [[0], [1], [0, 1], [1]], "vpt": [5]}, {"vpt": [2]})
_DESIGN = Design("mine", {"lora": 2, "ssf": [1, 0, 1]}, {"target_modules": ["query"], "lora_scale": 4.0}, True, 0.1)


def _make_settings(folder: Path) -> list[bytes]:
    import_plugins(["json"])  # settings that name a plugin are refused where it is not imported
    noah = RunSettings(strategy="noah", search_space=_BY_BLOCK.to_dict(), plugins=["json"])
    race = RunSettings(strategy="race", designs=[_DESIGN.to_dict()], baselines=["lora", _DESIGN.to_dict()])
    return [json.dumps(asdict(settings)).encode() for settings in (RunSettings(), noah, race)]


def _make_suite(folder: Path) -> list[bytes]:
    task = Task("a", "tasks/a", "Natural", 3, (4,), {"train": 800}, shots=2, other_tests={"far": "tasks/b"})
    hand = {"hand": Architecture(lora=[1, 2])}
    plan = Plan((task,), ("lora", "noah retrained", "design mine"), (0, 1), RunSettings(), True, hand, (_DESIGN,))
    plan.save(folder)
    return [(folder / "suite.json").read_bytes()]


def _make_report(folder: Path) -> list[bytes]:
    results = [
        MethodResult("lora", seed, 100, 10, 0.5 + seed / 10, 0.5, 20, 30, 1.5, {"sketch": (0.5, 9)}) for seed in (0, 1)
    ]
    report = RunReport(
        results, {"sizes": {"train": 3}}, {"model": "vit"}, architecture=ARCHITECTURE.to_dict(), notes=["x"]
    )
    return [dump_json(report.to_dict()).encode()]


def _load_report(folder: Path) -> None:
    report = RunReport.load(folder)
    report.to_markdown(), report.to_rich_table()


def _make_card(folder: Path) -> list[bytes]:
    preprocessing = {"size": [4, 4], "mean": [0.5] * 3, "std": [0.5] * 3, "resample": "bilinear"}
    data = CardData(
        **{"base_model": "google/vit", "architecture": ARCHITECTURE.to_dict(), "parameters": 5, "head_parameters": 3},
        **{
            "labels": ["cat", "dog"],
            "preprocessing": preprocessing,
            "recipe": "paper",
            "task": "pets",
            "dataset": "a/b",
        },
        **{
            "accuracy": {"test": (0.5, 30)},
            "training": {"epochs": 3},
            "search": {"budget": 9},
            "versions": {"peft": "1"},
        },
        **{"figure": "architecture.png", "interpolate_pos_encoding": True},
    )
    return [json.dumps(asdict(data)).encode()]


def _load_card(folder: Path) -> None:
    data = read_json(folder / "card.json")
    names = {entry.name for entry in fields(CardData)}
    required = {
        "base_model",
        "architecture",
        "parameters",
        "head_parameters",
        "labels",
        "preprocessing",
        "recipe",
        "task",
    }
    if isinstance(data, dict) and required <= set(data):
        model_card(CardData(**{name: value for name, value in data.items() if name in names}))


def _make_images(folder: Path) -> list[bytes]:
    kinds = [
        ("PNG", {}),
        ("JPEG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("WEBP", {}),
        ("PPM", {}),
        ("JPEG2000", {}),
    ]
    grey = [encode(pixels(1, channels=()), "PNG"), encode(PIL.Image.new("I;16", (24, 20)), "PNG")]
    return [*(encode(pixels(0), kind, **options) for kind, options in kinds), *grey]


def _make_parquet(folder: Path) -> list[bytes]:
    write_backbone(
        folder / "backbone", {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    )
    return [(write_task(folder) / "test.parquet").read_bytes()]


def _make_processor(folder: Path) -> list[bytes]:
    size = {"height": SIDE, "width": SIDE}
    config = {
        "image_processor_type": "ViTImageProcessor",
        "size": size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    config |= {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 2, "do_normalize": True}
    write_backbone(folder, config)
    return [json.dumps(config).encode()]


KINDS = {
    "architecture": Kind(
        "a.json",
        lambda folder: [ARCHITECTURE.to_json().encode()],
        lambda folder: Architecture.load(folder / "a.json"),
        mutate.JSON,
        15,
    ),
    "search space": Kind(
        "space.json",
        lambda folder: [json.dumps(space.to_dict()).encode() for space in (SearchSpace.vtab(), _BY_BLOCK)],
        lambda folder: SearchSpace.from_dict(read_json(folder / "space.json")).largest(),
        mutate.JSON,
        10,
    ),
    "search result": Kind("search.json", _make_search, _load_search, mutate.JSON, 15),
    "results": Kind("results.json", _make_report, _load_report, mutate.JSON, 15),
    "run settings": Kind(
        "settings.json",
        _make_settings,
        lambda folder: RunSettings.load(folder / "settings.json"),
        mutate.JSON,
        10,
    ),
    "design": Kind(
        "design.json",
        lambda folder: [json.dumps(_DESIGN.to_dict()).encode()],
        lambda folder: read_designs([str(folder / "design.json")]),
        mutate.JSON,
        10,
    ),
    "suite": Kind("suite.json", _make_suite, Plan.load, mutate.JSON, 10),
    "model card": Kind("card.json", _make_card, _load_card, mutate.JSON, 10),
    "adapter config": Kind("adapter_config.json", _make_config, _load_config, mutate.JSON, 10),
    "adapter weights": Kind(
        "adapter_model.safetensors",
        _make_weights,
        lambda folder: load_adapter(copy.deepcopy(_vit()), folder),
        (*mutate.BYTES, *(mutate.safetensors_header,) * 4),
        8,
    ),
    "list of images": Kind(
        "train.txt",
        lambda folder: [b"images/a.jpg 0\nimages/b.jpg 1\nimages/c.jpg 12\n" * 1],
        lambda folder: read_entries(folder / "train.txt", "train"),
        (*mutate.BYTES, mutate.blow_up),
        8,
    ),
    "CoOp list": Kind(
        "split_zhou_X.json",
        lambda folder: [
            json.dumps({s: [["a.jpg", 0, "cat"], ["b.jpg", 1, "dog"]] for s in ("train", "val", "test")}).encode()
        ],
        lambda folder: read_entries(folder / "split_zhou_X.json", "train"),
        mutate.JSON,
        8,
    ),
    "image": Kind(
        "image",
        _make_images,
        lambda folder: decode_image((folder / "image").read_bytes()),
        (*mutate.BYTES, *(mutate.image_header,) * 3),
        20,
    ),
    "image processor": Kind(
        "preprocessor_config.json", _make_processor, lambda folder: Preprocessing.from_backbone(folder), mutate.JSON, 5
    ),
    "parquet": Kind(
        "test.parquet",
        _make_parquet,
        lambda folder: load_splits(folder, Preprocessing.from_backbone(folder / "backbone")),
        (*mutate.BYTES, *(mutate.footer,) * 3),
        1,
    ),
}


class Files:
    """Mutated files of one kind, the same for the same number on every machine."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.kind, self.folder = name, KINDS[name], folder
        folder.mkdir(parents=True, exist_ok=True)
        self.originals = self.kind.make(folder)

    def mutated(self, number: int) -> bytes:
        """The file with this number."""
        rng = random.Random(f"{self.name} {number}")
        return rng.choice(self.kind.mutators)(rng.choice(self.originals), rng)

    def load(self, data: bytes) -> str:
        """Load the file.

        Returns:
            ``"accepted"``, ``"refused"``, or what went wrong instead.
        """
        (self.folder / self.kind.file).write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.kind.load(self.folder)
        except ValueError as error:
            return (
                "refused"
                if 1 <= len(str(error)) <= LONGEST_MESSAGE
                else f"crash: a message of {len(str(error)):,} letters"
            )
        except MemoryError:
            return "memory"
        except Exception as error:
            where = error.__traceback__
            while where.tb_next is not None:
                where = where.tb_next
            file = Path(where.tb_frame.f_code.co_filename).name
            return f"crash: {type(error).__name__} in {file}:{where.tb_lineno}: {str(error)[:120]}"
        return "accepted"
