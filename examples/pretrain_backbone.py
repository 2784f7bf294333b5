"""Pretrain the small bundled ViT, from labels and from a larger ViT's features.

The student is a plain transformers ViT (12 blocks, width 128, patch 16, 64 px). Its loss is

    cross_entropy(logits, label) + distill * [(1 - cos(A cls, T_cls)) + (1 - cos(B patch, T_patch))]

with linear maps A, B that are dropped at the end and T_* the teacher's last hidden states, its patch grid pooled to the
student's. The teacher sees ``--views`` fixed crops of every image once; the student meets just these crops, so that both
always look at the same pixels. Training is transformers' ``Trainer``: run the same command again to resume. The checkpoint
with the best top-1 on the validation images is the one that is kept.

    python examples/pretrain_backbone.py --data pretrain/ --teacher dinov2-small-vit/ --output vit-tiny-64/ \\
        --views 3 --steps 11000 --batch-size 128 --learning-rate 1e-3

expects ``train.parquet`` and ``validation.parquet`` (columns ``image``, ``label``) under ``--data``. Two CPU cores do about
3 steps of 128 images a second, after ten minutes for the teacher; the caches need about 3 GB of memory. On 30,000 images of
Tiny-ImageNet expect a top-1 near 18 %, reached around step 3,000: after that the student learns these images by heart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModel, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.trainer_utils import get_last_checkpoint

SIZE = 64
TEACHER_SIZE = 98
TEACHER_MEAN, TEACHER_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Student(nn.Module):
    """A ViT classifier with two linear maps into the teacher's feature space.

    Args:
        vit: the model to pretrain.
        teacher_width: width of the teacher's hidden states.
        distill: weight of the two cosine losses beside cross-entropy; no unit.
    """

    def __init__(self, vit: ViTForImageClassification, teacher_width: int, distill: float):
        super().__init__()
        self.vit = vit
        self.to_cls = nn.Linear(vit.config.hidden_size, teacher_width)
        self.to_patch = nn.Linear(vit.config.hidden_size, teacher_width)
        self.distill = distill

    def forward(self, pixel_values, labels, teacher=None):
        """``pixel_values`` (B, 3, 64, 64); ``labels`` (B,); ``teacher`` (B, 1 + patches, teacher_width)."""
        hidden = self.vit.vit(pixel_values=pixel_values).last_hidden_state
        logits = self.vit.classifier(hidden[:, 0])
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1 if self.training else 0.0)
        if self.training and teacher is not None:
            cls = F.cosine_similarity(self.to_cls(hidden[:, 0]), teacher[:, 0], dim=-1)
            patch = F.cosine_similarity(self.to_patch(hidden[:, 1:]), teacher[:, 1:], dim=-1)
            loss = loss + self.distill * (2 - cls.mean() - patch.mean())
        return {"loss": loss, "logits": logits}


class Views(torch.utils.data.Dataset):
    """Images held as uint8, with labels and, for training, the teacher's features. Fetches whole batches."""

    def __init__(self, images, labels, teacher=None, augment=False):
        self.images, self.labels, self.teacher, self.augment = images, labels, teacher, augment
        self.views = images.shape[1]

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        rows = torch.tensor(indices)
        view = torch.randint(self.views, (len(rows),)) if self.augment else torch.zeros(len(rows), dtype=torch.long)
        pixels = self.images[rows, view].float().div_(127.5).sub_(1.0)
        if self.augment:
            flip = torch.rand(len(rows)) < 0.5
            pixels[flip] = pixels[flip].flip(-1)
        batch = {"pixel_values": pixels, "labels": self.labels[rows]}
        if self.teacher is not None:
            teacher = self.teacher[rows, view].float()
            if self.augment:  # the teacher's patch grid is flipped with the image
                side = int((teacher.shape[1] - 1) ** 0.5)
                grid = teacher[flip, 1:].unflatten(1, (side, side)).flip(2).flatten(1, 2)
                teacher[flip] = torch.cat([teacher[flip, :1], grid], dim=1)
            batch["teacher"] = teacher
        return batch


def decode(path: Path, views: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return uint8 views (N, views, 3, 64, 64), labels (N,) and class names; view 0 is the whole image."""
    data = load_dataset("parquet", data_files=str(path), split="train")
    rng = np.random.default_rng(seed)
    images = torch.empty((len(data), views, 3, SIZE, SIZE), dtype=torch.uint8)
    for i, image in enumerate(tqdm(data["image"], desc=f"decoding {path.name}", mininterval=10)):
        image = image.convert("RGB")
        for v in range(views):
            box = (0, 0, *image.size) if v == 0 else _random_box(image.size, rng)
            view = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
            images[i, v] = torch.from_numpy(np.array(view)).permute(2, 0, 1)
    return images, torch.tensor(data["label"]), data.features["label"].names


def _random_box(size, rng):
    """A crop of 35 % to 100 % of the area with sides in a ratio of 3/4 to 4/3."""
    width, height = size
    area, ratio = rng.uniform(0.35, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(1.0, (area * ratio) ** 0.5) * width, min(1.0, (area / ratio) ** 0.5) * height
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return x, y, x + w, y + h


@torch.inference_mode()
def teacher_features(folder: str, images: torch.Tensor, grid: int, cache: Path) -> torch.Tensor:
    """The teacher's normalised last hidden states, (N, views, 1 + grid * grid, width) float16, kept in ``cache``."""
    if cache.exists():
        return load_file(cache)["teacher"]
    teacher = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (TEACHER_MEAN, TEACHER_STD))
    n, views = images.shape[:2]
    out = torch.empty((n * views, 1 + grid * grid, teacher.config.hidden_size), dtype=torch.float16)
    for start in tqdm(range(0, n * views, 256), desc="teacher", mininterval=10):
        pixels = images.flatten(0, 1)[start : start + 256].float() / 255
        pixels = F.interpolate(pixels, size=(TEACHER_SIZE, TEACHER_SIZE), mode="bicubic", antialias=True)
        pixels = ((pixels - mean) / std).to(torch.bfloat16)
        hidden = teacher(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state.float()
        side = int((hidden.shape[1] - 1) ** 0.5)
        patches = F.adaptive_avg_pool2d(hidden[:, 1:].transpose(1, 2).unflatten(2, (side, side)), grid)
        out[start : start + 256] = torch.cat([hidden[:, :1], patches.flatten(2).transpose(1, 2)], dim=1).half()
    out = out.unflatten(0, (n, views))
    save_file({"teacher": out}, cache)
    return out


def build_student(init: str | None, names: list[str]) -> ViTForImageClassification:
    """The bundled geometry, from ``init``'s weights where a folder is given."""
    labels = {i: name for i, name in enumerate(names)}
    if init:
        return ViTForImageClassification.from_pretrained(init, dtype=torch.float32)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=128, num_hidden_layers=12, num_attention_heads=4, intermediate_size=512, image_size=SIZE,
            patch_size=16, layer_norm_eps=1e-6, id2label=labels, label2id={v: k for k, v in labels.items()},
        )
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and validation.parquet")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pretrained model")
    parser.add_argument("--teacher", help="folder or Hub id of a ViT to distil from; none: labels only")
    parser.add_argument("--init", help="folder or Hub id of a ViT of the same shape to start from; none: random")
    parser.add_argument("--steps", type=int, default=12_000, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="peak of a cosine with 3 %% warm-up")
    parser.add_argument("--distill", type=float, default=2.0, help="weight of the distillation losses")
    parser.add_argument("--views", type=int, default=4, help="crops of every image that the teacher sees")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    work = args.output.with_name(args.output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    images, labels, names = decode(args.data / "train.parquet", args.views if args.teacher else 1, args.seed)
    valid_images, valid_labels, _ = decode(args.data / "validation.parquet", 1, args.seed)
    vit = build_student(args.init, names)
    grid = SIZE // vit.config.patch_size
    features = teacher_features(args.teacher, images, grid, work / "teacher.safetensors") if args.teacher else None
    student = Student(vit, features.shape[-1] if features is not None else 1, args.distill)

    trainer = Trainer(
        model=student,
        args=TrainingArguments(
            output_dir=str(work),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=500,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=int(0.03 * args.steps),
            weight_decay=0.05,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            logging_steps=100,
            save_steps=500,
            save_total_limit=2,
            eval_strategy="steps",
            eval_steps=500,
            load_best_model_at_end=True,
            metric_for_best_model="top1",
            label_names=["labels"],
            remove_unused_columns=False,
            report_to="none",
            seed=args.seed,
        ),
        train_dataset=Views(images, labels, features, augment=True),
        eval_dataset=Views(valid_images, valid_labels),
        data_collator=lambda batch: batch,
        compute_metrics=lambda p: {"top1": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)))
    print(f"top-1 on {len(valid_labels):,} validation images: {trainer.evaluate()['eval_top1']:.4f}", flush=True)

    vit.to(torch.float16).save_pretrained(args.output)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        args.output
    )


if __name__ == "__main__":
    main()
