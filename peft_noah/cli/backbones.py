"""The commands that say which backbones work."""

from __future__ import annotations

from typing import Annotated

import typer

from peft_noah.cli.options import Commands
from peft_noah.run.quiet import quiet

commands = Commands()


@commands.add("peft-noah backbones")
def backbones() -> None:
    """List the families of backbones that are known, with what works in each.

    A family has LoRA on each of the Linears named, and Adapter. docs/backbones.md shows more.
    """
    quiet()
    from peft_noah.run.checking import families

    rows = [("family", "VPT", "fast path", "other sizes", "LoRA on")]
    for family in (found := families()):
        tokens, fast = ("yes" if reason is None else "no" for reason in (family.tokens, family.fast))
        rows.append((family.name, tokens, fast, family.sizes or "-", ", ".join(family.sites)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        typer.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
    for reason in dict.fromkeys(family.tokens for family in found if family.tokens is not None):
        names = ", ".join(family.name for family in found if family.tokens == reason)
        typer.echo(f"No VPT in {names}: {reason}.")
    for reason in dict.fromkeys(family.fast for family in found if family.fast is not None):
        names = ", ".join(family.name for family in found if family.fast == reason)
        typer.echo(f"No fast path for {names}: {reason}.")


@commands.add("peft-noah check google/siglip2-base-patch16-224")
def check(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a backbone; only its config.json is read.")],
) -> None:
    """Try whether a backbone works, with small random weights made from its config.json.

    The exit code is 0 if it works, 1 if not, with what is missing, 2 if nothing could be tried.
    """
    quiet()
    from peft_noah.run.checking import check_model

    answer = check_model(model)
    typer.echo(answer.text)
    if not answer.works:
        raise typer.Exit(1)
