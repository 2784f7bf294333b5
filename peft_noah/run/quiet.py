"""What a process of a command keeps quiet about, here and on other machines."""

from __future__ import annotations


def quiet() -> None:
    """The backbone's new classifier is expected; transformers' report about it would only worry."""
    import logging
    import warnings

    import transformers

    # PEFT's call, not the user's
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("peft_noah").setLevel(logging.INFO)
