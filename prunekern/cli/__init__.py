"""The command line, thin over the Python API: one file a command.

Exit codes: 0 done, 2 wrong input (one line on stderr), 130 stopped by Ctrl-C. What a command writes
is whole or not there: it is made under another name and renamed.
"""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

from prunekern.cli.advise import advise
from prunekern.cli.compare import compare
from prunekern.cli.convert import convert
from prunekern.cli.generate import generate
from prunekern.cli.hardware import hardware
from prunekern.cli.prune import prune
from prunekern.cli.recover import recover

app = typer.Typer(
    help="Prunes Llama-style models and runs what is left on sparse kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (advise, prune, recover, compare, convert, generate, hardware):
    app.command()(command)


def main() -> None:
    """Runs the command; wrong input ends in one line and exit code 2, not in a traceback."""
    try:
        app()
    except ValueError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(2) from None
