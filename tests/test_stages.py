"""Stages and their parts: shown by a reporter, and timed all the same for one that shows nothing."""

from __future__ import annotations

from qcompile.cli.output import Progress
from qcompile.reporter import Silent
from qcompile.stages import Stages, TellsParts


class Told(Silent):
    def __init__(self) -> None:
        self.heard = list[str]()

    def stage(self, name: str) -> None:
        self.heard.append(f"stage {name}")

    def part(self, name: str) -> None:
        self.heard.append(name)


def test_a_part_inside_a_part_goes_back_to_the_outer_one() -> None:
    told = Told()
    stages = Stages(told)
    with stages("plan"), stages.parts("cuts"), stages.parts("costs"):
        pass
    assert told.heard == ["stage plan", "cuts", "costs", "cuts", ""]


def test_a_reporter_without_parts_is_not_asked() -> None:
    stages = Stages(Silent())
    with stages("plan"), stages.parts("cuts"):
        pass
    assert [row["name"] for row in stages.rows()] == ["plan"]
    assert [part["name"] for part in stages.rows()[0]["parts"]] == ["cuts"]


def test_the_command_line_shows_parts() -> None:
    assert isinstance(Progress(quiet=True), TellsParts)
