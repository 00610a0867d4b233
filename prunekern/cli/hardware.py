"""prunekern hardware: what pays here."""

from __future__ import annotations

from typing import Annotated

import typer

from prunekern.cli.common import Json, show


def hardware(
    measure: Annotated[
        bool, typer.Option(help="Time a layer of each kind beside a dense one: half a minute.")
    ] = True,
    as_json: Json = False,
) -> None:
    """What this machine accelerates, what was built, and why not more.

    Example: prunekern hardware --no-measure
    """
    from prunekern.acceleration import acceleration
    from prunekern.hardware import hardware as find

    found = find()
    timed = acceleration() if measure else None
    if as_json:
        show({"hardware": found, "acceleration": timed}, as_json)
    else:
        show("\n\n".join(map(str, filter(None, (found, timed)))), as_json)
