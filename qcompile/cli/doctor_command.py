"""`qcompile doctor`: what is installed and what works here."""

from __future__ import annotations

import click

from qcompile.cli.flags import SETTINGS, json_flag
from qcompile.cli.output import print_json
from qcompile.doctor import BROKEN, examine

__all__ = ["command"]


@click.command("doctor", context_settings=SETTINGS)
@json_flag
def command(as_json: bool) -> int:
    r"""Try what qcompile needs on this machine, by running a tiny model, and say what to do.

    Exit code 4: something that is needed does not work.

    \b
    qcompile doctor
    qcompile doctor --json
    """
    found = []
    for finding in examine():
        found.append(finding)
        if not as_json:
            print(f"  {finding.state:<7} {finding.name}: {finding.text}", flush=True)
    broken = [f for f in found if f.state == BROKEN]
    needed = [f for f in broken if f.needed]
    if as_json:
        print_json({"findings": found, "works": not needed})
    elif needed:
        print(f"DOES NOT WORK here: {', '.join(f.name for f in needed)}")
    else:
        also = f"; broken, but not needed: {', '.join(f.name for f in broken)}" if broken else ""
        print(f"WORKS here{also}")
    return 4 if needed else 0
