"""`qcompile completion SHELL`: the script that completes commands, options and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from qcompile.cli.flags import SETTINGS

__all__ = ["command"]


@click.command("completion", context_settings=SETTINGS)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    r"""Print a script that lets SHELL complete commands, options, targets and files.

    \b
    bash:  qcompile completion bash > ~/.local/share/bash-completion/completions/qcompile
    zsh:   qcompile completion zsh > "${fpath[1]}/_qcompile"
    fish:  qcompile completion fish > ~/.config/fish/completions/qcompile.fish

    It takes effect in the next shell; for this one: eval "$(qcompile completion bash)". Needs bash 4.4.
    """
    from qcompile.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click knows no {shell}; upgrade it")
    # the script itself; asking bash for its version, as click does first, needs a bash here
    made = kind(cli, {}, "qcompile", "_QCOMPILE_COMPLETE")
    print(made.source_template % made.source_vars())
    return 0
