"""The fast forward: the same blocks with the same results, without what nobody reads.

    with fast_forward(model):
        logits = model(pixel_values=images).logits

Inside, each block of a known family computes

    x = x + drop(scale(attention(norm(x))));   x = x + drop(scale(mlp(norm_after(x))))

from its own modules, as transformers does, but

- VPT's tokens serve as keys and values only, where the next block would replace them: no query, output projection, MLP or
  Adapter is computed for them, and without dropout their keys and values are computed once for the whole batch;
- the last block computes those for the tokens that the classifier reads alone;
- one matrix product serves query, key and value, and another one makes the patches' embeddings;
- frozen weights are laid out for the CPU's matrix kernels, or cast to the autocast dtype, once (`packed`);
- while nothing is trained, LoRA's updates are added to copies of the projections' weights.

Where this cannot be done, the model runs as it is: `FastForward.reason` says why. That is so for a prompt module that does
not say it works token by token, and wherever a family or module that is not built in gave other numbers in the first call
of a kind, which is compared with a plain one (`compare`). Under `torch.compile` layouts and casts are
the compiler's; on a GPU it also gets one product for query, key and value, with LoRA's updates added to its weights where
there is no dropout before them. A supernet is compiled once for all subnets in `NoahModel.fixed_shapes`.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from peft_noah.fast.block import BlockPlan, FastCall, FastOptions, fast_class, plain_class
from peft_noah.fast.compare import Comparison, unknown_parts
from peft_noah.fast.low_rank import LowRankLinear
from peft_noah.fast.packed import FrozenLinears, PackedLinear, is_frozen_linear
from peft_noah.fast.patches import PatchProduct, is_patch_embedding
from peft_noah.tuner.backbones import BACKBONES, Backbone
from peft_noah.tuner.layer import NoahLayer, NoahLinear
from peft_noah.tuner.prompts import is_own_hook
from peft_noah.tuner.prompts.tokens import FAST_CALL

logger = logging.getLogger(__name__)

#: attention functions of transformers that take queries fewer than keys, and no mask
_ATTENTIONS = ("sdpa", "flash_attention_2", "flash_attention_3")


#: what takes the place of a class while its weights are packed
_PACKED = {nn.Linear: PackedLinear, NoahLinear: LowRankLinear}

#: bytes of frozen weights up to which a second copy of them for gradients in float32 does not matter
SMALL = 64e6


class FastForward:
    """What `fast_forward` yields.

    Attributes:
        reason: why the last call, or all calls, took the plain path; None: it was fast.
    """

    def __init__(self, options: FastOptions) -> None:
        self.options = options
        self.reason: str | None = None
        self.linears = FrozenLinears(options.pack_weights)
        self.comparison: Comparison | None = None  # where all parts of the model are built in
        self._logged: set[str] = set()

    def note(self, reason: str | None) -> None:
        """Remember whether the fast forward is on, and say so once per reason."""
        self.reason = reason
        if reason is not None and reason not in self._logged:
            self._logged.add(reason)
            logger.info("the fast forward is off: %s.", reason)

    def compare(self, **inputs: Any) -> None:
        """Compare with the plain forward on these inputs now, where the model is one that is compared.

        For what comes before a compiler, which has to know: call it with the largest subnet active.
        """
        if self.comparison is not None:
            root = self.comparison.root
            device = next(root.parameters()).device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                try:
                    root(**inputs)
                except RuntimeError:  # what the plain forward cannot do while shapes are fixed: the reason says more
                    if self.reason is None:
                        raise

    def __reduce__(self):
        return type(None), ()  # a copy of the model, made inside the context, is a plain one


@contextmanager
def fast_forward(model: nn.Module, **options: bool) -> Iterator[FastForward]:
    """Let ``model`` compute the same logits and gradients faster for a while.

    A context inside another one of the same model changes nothing. Weights may change inside, architectures too.

    Args:
        model: a transformers classifier with or without NOAH adapters, a `PeftModel` or DistributedDataParallel around it.
        **options: fields of `FastOptions`.

    Yields:
        A `FastForward`, whose ``reason`` says whether it is on.
    """
    fast = FastForward(FastOptions(**options))
    root = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    hooks = [] if root is None else root._forward_pre_hooks.values()
    outer = next((hook.keywords["fast"] for hook in hooks if _is_active(hook)), None)
    if outer is not None:
        yield outer
        return
    reason = "the model is not a transformers model" if root is None else _why_never(root)
    if reason is not None:
        if root is not None and _is_of_texts(root):
            fast.reason = reason  # there is none for texts: no news in each training
        else:
            fast.note(reason)
        yield fast
        return
    backbone = BACKBONES[root.config.model_type]
    blocks = [root.get_submodule(name) for name in backbone.block_names(root)]
    modules = [module for block in blocks for module in block.modules()]
    if unknown_parts(root, blocks):
        fast.comparison = Comparison(root, blocks, backbone)
    fast.linears.transpose = sum(leaf.weight.nbytes for leaf in modules if is_frozen_linear(leaf)) <= SMALL
    hook = functools.partial(_before_call, fast=fast, modules=modules)
    handle = root.register_forward_pre_hook(hook, with_kwargs=True)
    swapped = [*_swap(fast, backbone, blocks), *_swap_patches(root, fast.options.patches_by_product)]
    try:
        yield fast
    finally:
        handle.remove()
        for module, cls in swapped:
            module.__class__ = cls
            for attribute in ("noah_fast", "noah_packed"):
                module.__dict__.pop(attribute, None)


def _swap(fast: FastForward, backbone: Backbone, blocks: list[nn.Module]) -> Iterator[tuple[nn.Module, type]]:
    for index, block in enumerate(blocks):
        # a subclass rather than a `forward` of the instance: transformers wraps that of a class in checkpointing
        cls, block.__class__ = plain_class(type(block)), fast_class(plain_class(type(block)))
        block.noah_fast = BlockPlan(fast.options, fast.linears, backbone, last=index == len(blocks) - 1)
        yield block, cls
        for leaf in list(block.modules()) if fast.options.pack_weights else ():
            plain = NoahLinear if isinstance(leaf, NoahLinear) else nn.Linear
            if plain is NoahLinear or is_frozen_linear(leaf):
                leaf.__class__, leaf.noah_packed = _PACKED[plain], fast.linears
                yield leaf, plain


def _swap_patches(root: nn.Module, wanted: bool) -> Iterator[tuple[nn.Module, type]]:
    for leaf in filter(is_patch_embedding, root.modules() if wanted else ()):
        leaf.__class__ = PatchProduct
        yield leaf, nn.Conv2d


# ------------------------------------------------------------------ whether it can be done


def _why_never(root: nn.Module) -> str | None:
    """Why no call of this model can be fast."""
    model_type = getattr(root.config, "model_type", None)
    backbone = BACKBONES.get(model_type)
    if backbone is None or backbone.norm_after is None or backbone.not_fast is not None:
        why = None if backbone is None else backbone.not_fast
        return why or f"the blocks of model_type {model_type!r} are not known to it"
    blocks = [root.get_submodule(name) for name in backbone.block_names(root)]
    for module in itertools.chain([root], *(block.modules() for block in blocks)):
        if hasattr(module, "_hf_hook"):
            return "Accelerate places the model's layers on several devices"
        if "FSDP" in type(module).__name__ or "FullyShardedDataParallel" in type(module).__name__:
            return "the model is sharded by FSDP"
    if any(type(weight).__name__ == "DTensor" for weight in root.parameters()):
        return "the weights are distributed tensors"
    if not blocks or any(
        not plain_class(type(module)).__module__.startswith("transformers.models.") for module in blocks
    ):
        return "the blocks are not transformers' own"
    return None


def _is_of_texts(root: nn.Module) -> bool:
    backbone = BACKBONES.get(getattr(root.config, "model_type", None))
    return backbone is not None and backbone.reads == "texts"


def _why_not_now(root: nn.Module, args: tuple, kwargs: dict[str, Any], modules: list[nn.Module]) -> str | None:
    """Why this call cannot be fast."""
    for name in ("output_attentions", "output_hidden_states"):
        if kwargs.get(name, getattr(root.config, name, False)):
            return f"{name} was asked for"
    if kwargs.get("attention_mask") is not None:
        return "an attention_mask was given"
    if len(args) > 1:
        return "more than the pixels was passed by position"
    if root.config._attn_implementation not in _ATTENTIONS:
        return f"attention is computed by {root.config._attn_implementation!r}, not by 'sdpa'"
    for module in () if torch.compiler.is_compiling() else modules:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            if any(map(_is_foreign, _hooks(module))):
                return f"a {plain_class(type(module)).__name__} has hooks"
        elif isinstance(module, NoahLayer) and module.batch_adapters is not None:
            return "each sample of the batch has an adapter of its own"
    checkpointing = getattr(modules[0], "_gradient_checkpointing_func", None)
    if (
        checkpointing is not None
        and root.training
        and getattr(checkpointing, "keywords", {}).get("use_reentrant", True)
    ):
        return "gradient checkpointing is reentrant: prepare the model with use_reentrant=False"
    return None


def _needs_all_tokens(modules: list[nn.Module], options: FastOptions) -> str | None:
    """Why no token may be left out: an active module that may look at all of them."""
    for module in (module for layer in modules if isinstance(layer, NoahLayer) for module in layer.active_modules()):
        leaves_out = options.prompts_as_keys or options.head_tokens_only or module.chosen is not None
        if leaves_out and not module.is_tokenwise:
            return f"prompt module {module.row!r} does not say that it works token by token (is_tokenwise = True)"
    return None


def _hooks(module: nn.Module) -> Iterator[Any]:
    names = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    return itertools.chain.from_iterable(getattr(module, name).values() for name in names)


def _is_foreign(hook: Any) -> bool:
    recorder = (
        getattr(hook, "__module__", None) == "transformers.utils.output_capturing"
    )  # idle until asked for outputs
    return not (recorder or is_own_hook(hook))


def _is_active(hook: Any) -> bool:
    ours = isinstance(hook, functools.partial) and hook.func is _before_call
    return ours and hook.keywords["fast"] is not None


def _before_call(
    root: nn.Module, args: tuple, kwargs: dict[str, Any], *, fast: FastForward | None, modules: list[nn.Module]
) -> tuple[tuple, dict[str, Any]] | None:
    """Forward pre-hook of the whole model: what it decides reaches the blocks as a keyword argument.

    Not as a state of theirs: gradient checkpointing calls a block again when the model's forward is long over.
    """
    if fast is None:  # in a copy
        return None
    fast.note(_why_not_now(root, args, kwargs, modules) or _needs_all_tokens(modules, fast.options))
    if fast.reason is not None:
        return None
    # who has activations computed twice needs memory more than time
    checkpointing = root.training and getattr(modules[0], "gradient_checkpointing", False)
    fast.linears.pack = fast.options.pack_weights and not checkpointing
    backbone = BACKBONES[root.config.model_type]
    # a class of the user's own may read other tokens than transformers' classifier, and make masks
    own = type(root).__module__.startswith("transformers.models.")
    reads = backbone.head_tokens if own and backbone.head_names(root) and fast.options.head_tokens_only else None
    call = FastCall(reads, unmasked=own)
    if fast.comparison is not None:
        fast.note(fast.comparison.judge(args, kwargs, call))
    return None if fast.reason is not None else (args, {**kwargs, FAST_CALL: call})
