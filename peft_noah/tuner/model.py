"""`NoahModel`: PEFT's tuner for NOAH. It places the prompt modules, sets architectures, counts and extracts them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.search_space import SearchSpace
from peft_noah.tuner.backbones import BACKBONES, how_to_know
from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.export import as_peft_lora
from peft_noah.tuner.fixed_shapes import chosen_by_masks, write_choices
from peft_noah.tuner.layer import NoahLayer, NoahLinear, noah_layers
from peft_noah.tuner.layout import Layout
from peft_noah.tuner.merging import check_mergeable
from peft_noah.tuner.mixed_batch import adapter_per_sample
from peft_noah.tuner.placement import Placement, plan, unwrap
from peft_noah.tuner.prompts import PROMPT_MODULES, PromptModule, by_row, find_prompt_module
from peft_noah.tuner.resolving import check_rows, resolve_config


class NoahModel(BaseTuner):
    """A frozen Vision Transformer with elastic LoRA, Adapter and VPT modules.

    Made by ``get_peft_model(vit, NoahConfig(...))``; the `PeftModel` around it forwards the methods below. Every module
    stores its largest dim; `set_architecture` chooses which leading slices are active. Source: NOAH (arXiv 2206.04673),
    section 3.
    """

    prefix: str = "noah_"
    tuner_layer_cls = NoahLayer
    target_module_mapping: dict[str, list[str]] = {}
    _fixed: tuple[str, list[PromptModule]] | None = None  # the adapter whose shapes are fixed, and its modules

    # ------------------------------------------------------------------ injection, called by PEFT

    def _prepare_adapter_config(self, peft_config: NoahConfig, model_config: dict) -> NoahConfig:
        model_type = model_config.get("model_type")
        self._layout = Layout.of(self.model, model_type, peft_config)
        resolve_config(peft_config, self._layout, self.model, model_type)
        self._plan: dict[str, Placement] = plan(self.model, peft_config, self._layout)
        return peft_config

    def _check_target_module_exists(self, peft_config: NoahConfig, key: str):
        result = check_target_module_exists(peft_config, key)
        return result if isinstance(result, _ExcludedModule) else key in self._plan

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        placement = self._plan[current_key]
        layer = target
        if not isinstance(target, NoahLayer):
            cls = NoahLinear if "Linear" in type(unwrap(target)).__name__ else NoahLayer
            layer = cls(target, placement.in_features, placement.out_features)
            self._replace_module(parent, target_name, layer, target)
        owners = {
            row: next(m for m in self.model.get_submodule(key).prompt_modules(adapter_name) if m.row == row)
            for row, key in placement.owners.items()
        }
        layer.update_layer(adapter_name, placement, peft_config, owners)
        if self._layout.backbone is not None:
            block = self.model.get_submodule(self._layout.blocks[placement.block])
            for row in placement.dims:
                find_prompt_module(row).attach(block, self._layout.backbone)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT copies ``weight`` over here, which a LayerScale does not have; a leaf and its wrapper share it anyway, and
        # NoahLayer.update_layer moves what is new to the leaf's device
        setattr(parent, child_name, new_module)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Place the modules of an adapter, as every PEFT tuner does; all of what is stored is active then."""
        # PEFT can guess the layers from a state dict, which knows none of those without weights: stochastic depth, and
        # tokens that only pass through. The config's architecture names all.
        kwargs["state_dict"] = None
        family = getattr(getattr(model, "config", None), "model_type", None)
        if family in BACKBONES and not hasattr(model, "base_model_prefix"):
            # a module that borrows the config of the model inside it, which transformers takes for one of its own
            raise ValueError(how_to_know(family, model))
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self.set_architecture(self.peft_config[adapter_name].architecture, adapter_name)

    # ------------------------------------------------------------------ architectures

    def set_architecture(
        self, architecture: Architecture | Mapping[str, list[int]], adapter_name: str | None = None
    ) -> None:
        """Make one subnet active: leading slices of the stored weights, dim by dim.

        Args:
            architecture: one dim per module and block, none larger than what is stored; a row left out is all zeros.
            adapter_name: which adapter; None: the active one.

        Raises:
            ValueError: if a row is unknown, has the wrong length, or asks for more than is stored, or while the adapter is
                merged. Nothing has changed then.
        """
        name = self._adapter(adapter_name)
        is_fixed = self._fixed is not None and self._fixed[0] == name
        if not is_fixed:
            self._check_unmerged(name)
        architecture = self._check_fits(Architecture(architecture), name)
        modules = self._fixed[1] if is_fixed else list(self.prompt_modules(name))
        for module in modules:
            row = architecture.get(module.row)
            module.set_dim(row[module.block] if row else 0)
        for cls, group in by_row(modules):
            cls.connect(group, architecture.num_blocks, self.peft_config[name])
        if is_fixed:
            write_choices(modules)

    @contextmanager
    def fixed_shapes(self, adapter_name: str | None = None) -> Iterator[None]:
        """Compute every subnet with the shapes of the largest for a while: for a compiler, or for CUDA graphs.

        Weights behind the active slice count as zeros and VPT's tokens behind it are keys that no query sees, so that
        outputs and gradients are those of the slices. What is active is a tensor on the device: choosing another subnet
        changes no shape and no Python value that a compiled model depends on. A model with VPT must run in
        `peft_noah.fast.fast_forward` meanwhile.

        Args:
            adapter_name: which adapter; None: the active one.

        Raises:
            ValueError: where blocks store different numbers of VPT tokens, or several active adapters have tokens.
        """
        name = self._adapter(adapter_name)
        self._check_unmerged(name)
        if any(len(layer.token_modules()) > 1 for _, layer in self.noah_layers()):
            raise ValueError(
                f"shapes cannot be fixed: adapters {', '.join(map(repr, self.active_adapters))} are active, and more than "
                "one has VPT tokens. Activate one of them."
            )
        modules = list(self.prompt_modules(name))
        with chosen_by_masks(modules, self.peft_config[name]):
            self._fixed = name, modules
            try:
                self.set_architecture(self.get_architecture(name), name)
                yield
            finally:
                self._fixed = None

    def get_architecture(self, adapter_name: str | None = None) -> Architecture:
        """The subnet that is active now."""
        name = self._adapter(adapter_name)
        rows = {row: [0] * len(dims) for row, dims in self.peft_config[name].architecture.items()}
        for module in self.prompt_modules(name):
            rows[module.row][module.block] = module.dim
        return Architecture(rows)

    def get_search_space(self, adapter_name: str | None = None) -> SearchSpace:
        """The space that a supernet samples from.

        Raises:
            ValueError: for an adapter that is one frozen subnet.
        """
        space = self.peft_config[self._adapter(adapter_name)].search_space
        if space is None:
            raise ValueError(
                "this adapter is one fixed architecture: there is nothing to sample or search. Build a supernet with "
                "NoahConfig(search_space='vtab')."
            )
        return SearchSpace.from_dict(space)

    def count_parameters(
        self, architecture: Architecture | Mapping[str, list[int]] | None = None, adapter_name: str | None = None
    ) -> int:
        """Number of prompt parameters of a subnet, by formula, without building it; the classifier is not counted.

        Per block: LoRA 2 r (in + out) for q and k, or r (in + 3 out) with one shared down matrix; Adapter 2 D a + a + D;
        VPT m D; rows by site r (in + out) of that Linear; Adapter+ 4 D a + 2 a + 4 D; RepAdapter 4 D a + 2 a + 2 D; SSF and BitFit 2 and 1 for each output
        of the Linears and norms; prefixes 2 m times the width of the keys. The released code also counts model-level tokens that have no effect; they do not exist here.

        Args:
            architecture: which subnet; None: the active one.
        """
        name = self._adapter(adapter_name)
        rows = self._rows(architecture, name)
        return sum(m.count(rows[m.row][m.block] if m.row in rows else 0) for m in self.prompt_modules(name))

    def extract(
        self, architecture: Architecture | Mapping[str, list[int]] | None = None, adapter_name: str | None = None
    ) -> PeftModel:
        """Cut a subnet out of the supernet: a frozen NOAH adapter that holds only the sliced weights.

        The result shares the frozen backbone's weights with this model and owns copies of the rest, the classifier
        included. Its outputs equal the active subnet's bit for bit.

        Args:
            architecture: which subnet; None: the active one.

        Returns:
            A `PeftModel` with adapter ``default``, in the same training or evaluation mode: save it with
            ``save_pretrained``.
        """
        name = self._adapter(adapter_name)
        self._check_unmerged(*self.peft_config)
        rows = self._rows(architecture, name)
        config = copy.deepcopy(self.peft_config[name])
        config.architecture, config.search_space = rows.to_dict(), None
        config.inference_mode = False
        state = get_peft_model_state_dict(self, adapter_name=name)
        state.update(self._sliced_state(rows, name, drop_from=state))

        return self._with_weights(config, state)

    def _with_weights(self, config: PeftConfig, state: dict[str, torch.Tensor]) -> PeftModel:
        """A new `PeftModel` on this backbone, with weights by saved key."""
        subnet = get_peft_model(self._bare_copy(), config)
        device = next(self.model.parameters()).device
        result = set_peft_model_state_dict(subnet, {f"base_model.{key}": value for key, value in state.items()})
        if result.unexpected_keys:
            raise RuntimeError(f"these keys are not in the new model: {result.unexpected_keys[:3]}")
        return subnet.to(device).train(self.training)

    def export_lora(
        self, architecture: Architecture | Mapping[str, list[int]] | None = None, adapter_name: str | None = None
    ) -> PeftModel:
        """Cut a LoRA-only subnet out as a LoRA adapter of PEFT, which loads where this package is not installed.

        Every projection gets its own ``lora_A`` and ``lora_B``, a shared down matrix as a copy; ranks go to
        ``rank_pattern``, and ``alpha_pattern`` keeps the scale. Outputs in evaluation mode equal the subnet's but for
        the order of sums. Stochastic depth, which acts in training only, has no place in a `LoraConfig`.

        Args:
            architecture: which subnet; None: the active one.

        Returns:
            A `PeftModel` with a `LoraConfig`, as from `extract`: save it with ``save_pretrained``.

        Raises:
            ValueError: if an Adapter or VPT dim is not 0, or all LoRA dims are, or the adapter is merged.
        """
        name = self._adapter(adapter_name)
        self._check_unmerged(*self.peft_config)
        layers, config = dict(self.noah_layers()), self.peft_config[name]
        lora_config, weights = as_peft_lora(layers, config, self._rows(architecture, name), name)
        others = get_peft_model_state_dict(self, adapter_name=name).items()
        return self._with_weights(lora_config, {k: value for k, value in others if ".noah_" not in k} | weights)

    def _sliced_state(self, rows: Architecture, name: str, drop_from: dict) -> dict[str, torch.Tensor]:
        """Sliced weights by saved key; the full ones are taken out of ``drop_from``."""
        sliced = {}
        for key, layer in self.noah_layers():
            for module in layer.prompt_modules(name):
                prefix = f"model.{key}.noah_{module.row}"
                for weight, _ in module.named_parameters():
                    drop_from.pop(f"{prefix}.{weight}")
                dim = rows[module.row][module.block] if module.row in rows else 0
                sliced.update({f"{prefix}.{weight}": value for weight, value in module.sliced_state(dim).items()})
        return sliced

    def _bare_copy(self) -> nn.Module:
        """The backbone without adapters: a copy of the structure that shares the frozen weights."""
        shared = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        own = (".noah_", ".modules_to_save.", ".original_module.")
        memo = {
            id(tensor): tensor
            for key, tensor in shared
            # bitsandbytes hands a weight's scales over to the first layer that runs: such a weight cannot be shared
            if not any(part in f".{key}" for part in own) and not type(tensor).__module__.startswith("bitsandbytes")
        }
        bare = copy.deepcopy(self, memo).unload()
        for key, module in self.model.named_modules():
            if isinstance(module, ModulesToSaveWrapper):  # unload leaves the trained copy, as all PEFT methods do
                bare.set_submodule(key, copy.deepcopy(module.original_module))
        return bare

    def _adapter(self, name: str | None) -> str:
        if name is None:
            active = [adapter for adapter in self.active_adapters if isinstance(self.peft_config[adapter], NoahConfig)]
            if len(active) != 1:
                raise ValueError(f"{len(active)} adapters are active ({active}): say which one with adapter_name=.")
            return active[0]
        if name not in self.peft_config:
            raise ValueError(f"adapter {name!r} does not exist (known: {', '.join(self.peft_config)}).")
        return name

    def _rows(self, architecture: Architecture | Mapping[str, list[int]] | None, name: str) -> Architecture:
        given = self.get_architecture(name) if architecture is None else Architecture(architecture)
        return self._check_fits(given, name)

    def _check_fits(self, architecture: Architecture, name: str) -> Architecture:
        stored = Architecture(self.peft_config[name].architecture)
        check_rows(architecture, stored.num_blocks)
        for row, dims in architecture.items():
            limits = stored.get(row, (0,) * stored.num_blocks)
            for block, (dim, limit) in enumerate(zip(dims, limits, strict=True)):
                if dim > limit:
                    raise ValueError(
                        f"{row} in block {block} cannot take dim {dim}: adapter {name!r} stores dims 0 to {limit}. Choose "
                        "a smaller dim, or build the adapter with a larger architecture."
                    )
        return architecture

    def noah_layers(self) -> Iterator[tuple[str, NoahLayer]]:
        """The wrapped leaves with their names in the backbone."""
        return noah_layers(self.model)

    def prompt_modules(self, name: str) -> Iterator[PromptModule]:
        """All prompt modules of an adapter."""
        for _, layer in self.noah_layers():
            yield from layer.prompt_modules(name)

    # ------------------------------------------------------------------ several adapters, merging, unloading

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; where it was the only active one, the first of the others by name becomes active.

        Raises:
            ValueError: if it does not exist, or is merged.
        """
        if adapter_name in self.peft_config and adapter_name in self.active_adapters:
            self._check_unmerged(adapter_name)
            others = [name for name in self.active_adapters if name != adapter_name]
            others = others or sorted(name for name in self.peft_config if name != adapter_name)[:1]
            if others:  # PEFT would choose leaf by leaf, but here leaves differ in the adapters they carry
                self.set_adapter(others)
        super().delete_adapter(adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        with nullcontext() if names is None else adapter_per_sample(self, names):
            yield

    def _check_unmerged(self, *names: str) -> None:
        merged = sorted({name for _, layer in self.noah_layers() for name in layer.merged_adapters} & {*names})
        if merged:
            raise ValueError(
                f"adapters {', '.join(map(repr, merged))} are merged into the base weights: call unmerge_adapter() first."
            )

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters of linear modules alone, such as LoRA, SSF and BitFit, into the base weights and biases.

        Args:
            adapter_names: which ones; None: the active ones.
            safe_merge: look for infinite values first.

        Raises:
            ValueError: if a module is active that is not linear, as Adapter and VPT are not, or a merged weight would not
                be finite; nothing has changed then.
        """
        check_mergeable(self, adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self, merge: bool = True, progressbar: bool = False, safe_merge: bool = False, adapter_names=None
    ) -> nn.Module:
        if merge:
            check_mergeable(self, adapter_names, safe_merge)
        model = super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )
        for module in model.modules():
            for cls in PROMPT_MODULES.values():
                cls.detach(module)
        return model
