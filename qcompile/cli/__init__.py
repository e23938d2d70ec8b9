"""The command line: `qcompile MODEL ...` compiles; sub-commands answer questions."""

from qcompile.cli.main import main

__all__ = ["main"]
