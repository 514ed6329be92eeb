"""The command line: one file a verb, loaded only when it is called.

`vsteer --help` must not import torch or vllm, so the group knows each verb by its name and help line alone.
"""

import errno
import importlib
import logging
import signal
import sys
import threading
from typing import Any

import click

from vsteer.errors import UsageError, VsteerError
from vsteer.packages import __version__
from vsteer.terminal import LogFormatter, echo

VERBS = {
    "run": ("vsteer.cli.run:run", "Run a grid into Parquet, or go on with it."),
    "status": ("vsteer.cli.status:status", "Show where a run stands."),
    "check": ("vsteer.cli.status:check", "Prove a run whole against its plan."),
    "sql": ("vsteer.cli.sql:sql", "Answer what papers ask of one run or many, in SQL."),
    "report": ("vsteer.cli.report:report", "Draw a run, or several, as one HTML page."),
    "show": ("vsteer.cli.show:show", "Show the answers to one prompt over the multipliers."),
    "export": ("vsteer.cli.export:export", "Write the rows of a run as CSV or JSON Lines."),
    "stats": ("vsteer.cli.stats:stats", "Work out intervals, held-out peaks and fits of a run."),
    "score": ("vsteer.cli.score:score", "Score the texts of a run, without generating."),
    "plan": ("vsteer.cli.plan:plan", "Show what a grid comes to, before it is run."),
    "verify": ("vsteer.cli.verify:verify", "Compare vLLM's steering of a model with Hugging Face's."),
    "doctor": ("vsteer.cli.doctor:doctor", "Show what a run would meet on this machine, and how to fix it."),
    "vectors": (
        "vsteer.cli.vectors:vectors",
        "Look at steering vectors, compare them, derive others.",
    ),
    "mechanism": ("vsteer.cli.mechanism:mechanism", "Look into why a steering works, on one device."),
    "serve": ("vsteer.cli.serve:serve", "Serve a model through OpenAI's API, steered by the model's name."),
    "chat": ("vsteer.cli.chat:chat", "Chat with a model, steered and unsteered side by side."),
    "bench": ("vsteer.cli.bench:bench", "Measure vsteer on this machine."),
    "models": ("vsteer.cli.models:models", "List, fetch and locate the named models that need no hub."),
}
"""Each verb's `module:attribute` and its line in `vsteer --help`."""


# The most characters of an error on the terminal, its hint included.
LONGEST = 600


class Failure(click.ClickException):
    """A `VsteerError` as the terminal shows it: two lines on stderr and the error's own exit code."""

    def __init__(self, error: VsteerError) -> None:
        most = LONGEST - len(f"error: \nhint: {error.hint}")
        message = error.message if len(error.message) <= most else f"{error.message[: most - 1]}…"
        super().__init__(f"{message}\nhint: {error.hint}")
        # click reads the code from the exception that it shows, and its type declares it for the whole class.
        self.__dict__["exit_code"] = error.exit_code

    def show(self, file: Any = None) -> None:
        echo(f"error: {self.message}", err=True)


class VerbGroup(click.Group):
    """A click group that imports a verb's module when the verb is called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, attribute = VERBS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        if logging.lastResort is not None:
            logging.lastResort.setFormatter(LogFormatter())
        if threading.current_thread() is threading.main_thread():
            # SIGTERM becomes an exit, so that whoever started an engine closes it; a run has its own handler.
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            return super().invoke(ctx)
        except VsteerError as error:
            raise Failure(error) from error
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            from vsteer.validation import shortened

            # whatever was looked for under such a name
            message = f"{shortened(str(error.filename))} is too long for the name of a file"
            hint = "name a file or a folder; SQL goes behind `vsteer sql -c`"
            raise Failure(UsageError(message, hint)) from error
        except KeyboardInterrupt:
            # click would turn this into "Aborted!" and exit code 1, which means "error" here.
            echo("interrupted", err=True)
            raise click.exceptions.Exit(130) from None


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vsteer")
def main() -> None:
    """Steer language models by adding vectors to the residual stream, through vLLM.

    \b
    Example:
      vsteer models get smollm2-135m-instruct
    """
