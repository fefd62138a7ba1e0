"""`autogaze --print-completion SHELL`: a script that completes verbs, options, their choices, and files.

autogaze --print-completion bash > ~/.local/share/bash-completion/completions/autogaze
autogaze --print-completion zsh > ~/.zfunc/_autogaze     a folder of your $fpath
"""

from __future__ import annotations

import argparse
from pathlib import Path

SHELLS = ("bash", "zsh", "tcsh")
FILES = ("video", "checkpoint", "model", "what", "data", "reconstructor")  # arguments that may be files or folders


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of one shell.

    Args:
        parser: of `autogaze`, with the arguments of every verb.
        shell: one of `SHELLS`.
    """
    import shtab

    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for verb in verbs.choices.values():
        for action in verb._actions:
            if action.choices is None and (action.type is Path or action.dest in FILES):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
