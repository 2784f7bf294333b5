"""Labelled texts in memory: tokenised once, then padded batch by batch to the longest text of the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Subset

from peft_noah.data.labelled import Prepare, check_classes, classes_of_both


class TextSplit(Dataset):
    """Labelled texts as tokens: what a data loader fetches whole batches from, as from an `ImageSplit`.

    Texts keep their own lengths. A batch is padded on the right to its longest text, and its `attention_mask` says which
    tokens are real.

    Args:
        tokens: N one-dimensional integer tensors, the token ids of each text; at least one token each.
        labels: int64 tensor of shape (N,), class indices.
        pad: the id that fills a batch up.
        digests: SHA-256 of each text; None: of its tokens.
        classes: the class indices among which the texts are scored, in rising order; None: all.

    Raises:
        ValueError: shapes or types are others, a text has no token, or a label is not among the classes.
    """

    #: texts are always kept as tokens
    in_memory = True

    def __init__(
        self,
        tokens: Sequence[Tensor],
        labels: Tensor,
        pad: int,
        *,
        digests: Sequence[bytes] | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        if labels.dtype != torch.int64 or labels.shape != (len(tokens),):
            raise ValueError(
                f"labels of type {labels.dtype} and shape {tuple(labels.shape)} do not fit {len(tokens)} texts: expected "
                "int64, one per text."
            )
        if empty := [row for row, text in enumerate(tokens) if text.ndim != 1 or not len(text)]:
            raise ValueError(f"text {empty[0]} has no token. Leave it out, or write something in it.")
        self.classes = check_classes(labels, classes, "text")
        self.tokens, self.labels, self.pad = tuple(tokens), labels, pad
        self.digests = (
            [hashlib.sha256(text.numpy().tobytes()).digest() for text in tokens] if digests is None else digests
        )

    def subset(self, rows: Sequence[int]) -> TextSplit:
        """A split of the texts at ``rows``, in that order, scored among the same classes."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        chosen = [self.tokens[row] for row in rows.tolist()]
        digests = [self.digests[row] for row in rows.tolist()]
        return TextSplit(chosen, self.labels[rows], self.pad, digests=digests, classes=self.classes)

    def __add__(self, other: TextSplit) -> TextSplit:
        return TextSplit(
            [*self.tokens, *other.tokens],
            torch.cat([self.labels, other.labels]),
            self.pad,
            digests=[*self.digests, *other.digests],
            classes=classes_of_both(self, other),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One text, `input_ids` and `attention_mask` of shape (T,), and its label, int64 scalar, as `labels`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a split of {len(self)} texts")
        return {key: value[0] for key, value in self.__getitems__([index % len(self)]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A whole batch at once, which torch's data loader asks for where a dataset offers it.

        Args:
            indices: B indices from 0 to N - 1.

        Returns:
            `input_ids` and `attention_mask`, int64 of shape (B, T) with T tokens in the longest text, and `labels`, int64
            of shape (B,).
        """
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return {**pad_texts([self.tokens[row] for row in rows.tolist()], self.pad), "labels": self.labels[rows]}

    @staticmethod
    def inputs(batch: Mapping[str, Tensor], prepare: Prepare | None = None) -> dict[str, Tensor]:
        """What a model is called with for a batch: `input_ids` and `attention_mask`; there is nothing to prepare."""
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The `collate_fn` for a data loader: batches come ready from `__getitems__`."""
        return batch

    def on(self, device: torch.device) -> TextSplit:
        """This split: a batch of token ids is small enough to travel."""
        return self

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over labels and texts."""
        digest = hashlib.sha256(self.labels.contiguous().numpy().tobytes())
        for one in self.digests:
            digest.update(one)
        return digest.hexdigest()


def pad_texts(texts: Sequence[Tensor], pad: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 of shape (B, T), of B texts; shorter ones are filled up on the right."""
    ids = pad_sequence([text.long() for text in texts], batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones(len(text), dtype=torch.int64) for text in texts], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def encode_split(texts: Sequence[Any], labels: Sequence[int], tokenization: Any, name: str = "texts") -> TextSplit:
    """Tokenise the texts of a split once.

    Args:
        texts: N texts.
        labels: class index per text.
        tokenization: a `Tokenization`.
        name: the split's name, for error messages.

    Raises:
        ValueError: a text is missing, empty or no text; split and row are named.
    """
    # texts chosen out of a split keep the number that they have in the file
    numbers = texts.indices if isinstance(texts, Subset) else range(len(texts))
    texts = list(texts)
    for number, text in zip(numbers, texts, strict=True):
        if fault := text_fault(text):
            raise ValueError(f"text {number} of split {name!r} cannot be used: {fault}. Repair or remove it.")
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    tokens = tokenization.apply(texts)
    return TextSplit(tokens, torch.tensor(labels, dtype=torch.int64), tokenization.pad, digests=digests)


def text_fault(text: Any) -> str | None:
    """What is wrong with a text; None: nothing."""
    if text is None:
        return "it is missing (null)"
    if not isinstance(text, str):
        return f"it is no text but {text!r:.50}"
    return None if text.strip() else "it is empty"
