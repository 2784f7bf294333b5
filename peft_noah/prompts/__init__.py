"""The prompt modules, by the name of their row in an architecture. Adding one: a new file, and one line here."""

from __future__ import annotations

from peft_noah.prompts.adapter import Adapter
from peft_noah.prompts.base import PromptModule
from peft_noah.prompts.lora import Lora
from peft_noah.prompts.vpt import Vpt

#: applied in this order where several share a site
PROMPT_MODULES: dict[str, type[PromptModule]] = {cls.name: cls for cls in (Lora, Adapter, Vpt)}

__all__ = ["PROMPT_MODULES", "Adapter", "Lora", "PromptModule", "Vpt"]
