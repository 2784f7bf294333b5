"""Train a supernet with transformers' Trainer: a callback activates a random subnet at every step.

    python examples/with_trainer.py --epochs 30 --output supernet/

Evaluation and saving see the largest subnet; `examples/quickstart.py` shows the search that follows.
"""

import argparse

import torch
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from peft_noah import NoahConfig
from peft_noah.data import bundled_backbone, bundled_task, load_splits
from peft_noah.data.preprocessing import Normalizer, Preprocessing
from peft_noah.run.models import load_backbone
from peft_noah.training import SampleArchitectureCallback

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=float, default=30)
parser.add_argument("--output", default="supernet")
args = parser.parse_args()

preprocessing = Preprocessing.from_backbone(bundled_backbone())
splits = load_splits(bundled_task(), preprocessing)
normalize = Normalizer(preprocessing)


class Normalized(torch.utils.data.Dataset):
    """Rows as Trainer wants them: normalised images, labels under the name ``labels``."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        row = self.images[index]
        return {"pixel_values": normalize(row["pixel_values"]), "labels": row["labels"]}


trainer = Trainer(
    model=get_peft_model(load_backbone(bundled_backbone(), splits, seed=0), NoahConfig()),
    args=TrainingArguments(
        output_dir=args.output,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=64,
        learning_rate=5e-4,
        weight_decay=1e-3,
        lr_scheduler_type="cosine",
        label_names=["labels"],
        report_to="none",
        save_strategy="no",
    ),
    train_dataset=Normalized(splits.train),
    eval_dataset=Normalized(splits.validation),
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    callbacks=[SampleArchitectureCallback(seed=0)],
)
trainer.train()
print(f"largest subnet, validation accuracy {100 * trainer.evaluate()['eval_accuracy']:.1f} %")
trainer.save_model(args.output)
