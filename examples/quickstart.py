"""The whole path in Python: supernet, search, frozen adapter, on the bundled ViT and task (about 2 minutes on two CPU cores).

    python examples/quickstart.py --output my-adapter

Expect some 70 % test accuracy with the inherited weights after 30 supernet epochs; `peft-noah run` trains longer and
retrains the architecture it finds.
"""

import argparse

from peft import PeftModel, get_peft_model

from peft_noah import NoahConfig, SearchSettings, search
from peft_noah.data import bundled_backbone, bundled_task, load_splits
from peft_noah.data.preprocessing import Normalizer, Preprocessing
from peft_noah.run.models import load_backbone
from peft_noah.training import ArchitectureSampler, TrainingSettings, make_accelerator, train
from peft_noah.training.evaluation import evaluate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=30, help="of the supernet")
parser.add_argument("--generations", type=int, default=5)
parser.add_argument("--output", default="my-adapter")
args = parser.parse_args()

preprocessing = Preprocessing.from_backbone(bundled_backbone())
splits = load_splits(bundled_task(), preprocessing)
accelerator, normalize = make_accelerator(), Normalizer(preprocessing)
vit = load_backbone(bundled_backbone(), splits, seed=0)

# 1. a frozen ViT with elastic LoRA, Adapter and VPT in every block
model = get_peft_model(vit, NoahConfig())
space = model.get_search_space()
settings = TrainingSettings.named("paper", "supernet", epochs=args.epochs)
train(model, splits.train, normalize, settings, accelerator, sampler=ArchitectureSampler(space))


# 2. the best subnet of at most 50,000 parameters
def score(architecture):
    model.set_architecture(architecture)
    return evaluate(model, splits.validation, normalize, accelerator)


evolution = SearchSettings(generations=args.generations)
result = search(space, score, model.count_parameters, budget=50_000, settings=evolution)
print(result.best.architecture, f"{result.best.parameters:,} parameters")

# 3. an ordinary PEFT adapter
model.extract(result.best.architecture).save_pretrained(args.output)
loaded = PeftModel.from_pretrained(load_backbone(bundled_backbone(), splits, seed=0), args.output)
print(f"test accuracy {100 * evaluate(loaded, splits.test, normalize, accelerator):.1f} %")
