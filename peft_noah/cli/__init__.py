"""The ``peft-noah`` command: one command for the whole job, one for each of its stages, and those of a suite.

Only typer is imported here and in the files beside: help must not wait for torch.
"""

from __future__ import annotations

import typer

from peft_noah.cli import backbones, predict, run, suite
from peft_noah.cli.encoding import print_in_any_encoding

app = typer.Typer(
    name="peft-noah",
    help="From a pretrained backbone and a few hundred labelled samples to the best small adapter.",
    epilog="Example: peft-noah run --dataset my-images/ --model google/vit-base-patch16-224-in21k",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command, example in (
    *run.commands.found,
    *predict.commands.found,
    *suite.commands.found,
    *backbones.commands.found,
):
    app.command(epilog=example)(command)


def main() -> None:
    """Entry point of the console script and of ``python -m peft_noah``."""
    print_in_any_encoding()
    app()
