"""The artifact that the commands are tried on serves the documentation's tests too."""

from tests.cli.conftest import built

__all__ = ["built"]
