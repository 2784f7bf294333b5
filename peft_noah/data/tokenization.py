"""What happens to a text before the backbone sees it: one tokenizer and one greatest length for all stages of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoTokenizer

from peft_noah.data.backbone_config import first_line, load_config
from peft_noah.jsonfile import check_int

logger = logging.getLogger(__name__)

#: most tokens of a text where nobody says otherwise, and the backbone reads as many
MAX_TOKENS = 256
#: what a tokenizer says that knows no limit: transformers' own sign for it is larger
_NO_LIMIT = 1_000_000
#: files of which a folder with a tokenizer has one
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
)


@dataclass(frozen=True)
class Tokenization:
    """How texts become the backbone's input: by its own tokenizer, cut off behind a number of tokens.

    Attributes:
        max_tokens: most tokens of a text, special ones included; what is longer is cut off.
        pad: the token id that fills a batch up.
        source: where the tokenizer comes from, in words.
        processor: the tokenizer of transformers; `save_pretrained` writes it beside an adapter.
    """

    max_tokens: int
    pad: int
    source: str
    processor: Any = field(repr=False, compare=False)

    #: what it prepares, one of them in a word
    what: ClassVar[str] = "text"
    #: the class of transformers that has the models which read it
    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    #: between the stored values and the backbone's input there is no further step
    normalizer: ClassVar[None] = None

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str],
        max_tokens: int | None = None,
        reads: str | os.PathLike[str] | None = None,
    ) -> Tokenization:
        """The tokenization that a pretrained backbone expects.

        Args:
            backbone: a local folder or a Hub id: where the tokenizer is.
            max_tokens: most tokens of a text; None: 256, or as many as tokenizer and backbone allow, if fewer.
            reads: the backbone whose positions limit the length; None: ``backbone``.

        Raises:
            ValueError: the tokenizer cannot be read, has nothing to fill a batch up with, or the backbone reads fewer tokens; or
                ``max_tokens`` leaves no place for one of a text's own.
        """
        tokenizer = _load_tokenizer(backbone)
        config = load_config(backbone if reads is None else reads)
        # decoders often have no padding of their own: the end of a text serves, since the mask hides it
        known = (tokenizer.pad_token_id, config.pad_token_id, tokenizer.eos_token_id)
        pad = next((one for one in known if one is not None), None)
        if pad is None:
            raise ValueError(
                f"neither the tokenizer nor the config.json of {backbone} names a token that fills up shorter texts of a "
                "batch, or one that ends a text. Set pad_token in the tokenizer and pad_token_id in the config, and save both again."
            )
        most = _most_tokens(tokenizer, config)
        if max_tokens is None:
            max_tokens = min(MAX_TOKENS, most)
        # with fewer than its special tokens and one more, a tokenizer leaves nothing of a text, or does not cut it off at all
        check_int(max_tokens, "max_tokens", 1 + tokenizer.num_special_tokens_to_add(), most)
        tokenizer.model_max_length = max_tokens  # so that a saved one cuts texts off there, whoever calls it
        return cls(max_tokens, int(pad), f"the tokenizer of {backbone}", tokenizer)

    @classmethod
    def from_adapter(
        cls, folder: Path, backbone: str | os.PathLike[str], max_tokens: int | None = None
    ) -> Tokenization:
        """The tokenization that was saved beside an adapter; the backbone's own, with a warning, where there is none.

        Args:
            folder: of the adapter.
            backbone: the adapter's.
            max_tokens: most tokens of a text; None: as the adapter was trained.

        Raises:
            ValueError: as `from_backbone`.
        """
        if not has_tokenizer(folder):
            logger.warning("%s has no tokenizer: texts are prepared as its backbone asks for.", folder)
            return cls.from_backbone(backbone, max_tokens)
        own = _load_tokenizer(folder).model_max_length
        return cls.from_backbone(folder, own if max_tokens is None and own < _NO_LIMIT else max_tokens, backbone)

    def apply(self, texts: Sequence[str]) -> list[Tensor]:
        """Token ids of texts, one int32 tensor (T,) each, with the backbone's special tokens."""
        if not texts:  # a tokenizer of transformers breaks on none
            return []
        found = self.processor(list(texts), truncation=True, max_length=self.max_tokens, padding=False)["input_ids"]
        return [torch.tensor(ids, dtype=torch.int32) for ids in found]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a results file: every field but the tokenizer."""
        return {"max_tokens": self.max_tokens, "pad": self.pad, "source": self.source}


def _load_tokenizer(backbone: str | os.PathLike[str]) -> Any:
    folder = Path(backbone)
    try:
        if folder.is_dir() and not has_tokenizer(folder):
            raise ValueError(f"there is none of {', '.join(TOKENIZER_FILES)}")
        return AutoTokenizer.from_pretrained(str(backbone), trust_remote_code=False)
    except Exception as error:  # what transformers raises on a damaged file depends on where it meets it
        raise ValueError(
            f"cannot read the tokenizer of {backbone}: {first_line(error)}. Give a folder with config.json, model.safetensors "
            "and tokenizer.json, as save_pretrained of model and tokenizer write it, or a Hub id that is reachable or in the "
            "cache."
        ) from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a local folder has a tokenizer's files."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _most_tokens(tokenizer: Any, config: Any) -> int:
    """Most tokens that tokenizer and backbone allow."""
    limits = [tokenizer.model_max_length]
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        # RoBERTa counts positions from behind the padding's
        taken = (
            config.pad_token_id + 1 if config.model_type in _COUNT_FROM_PAD and config.pad_token_id is not None else 0
        )
        limits.append(positions - taken)
    return min([_NO_LIMIT, *limits])


_COUNT_FROM_PAD = ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm")
