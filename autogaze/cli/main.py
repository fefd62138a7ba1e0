"""`autogaze VERB ...`: each verb lives with its subject and is imported only when it is asked for.

A verb's module has `add_arguments(parser)` and `run(args) -> int`. A user's mistake is one line on stderr and exit
code 2; results go to stdout, words to stderr. A signal is one line and exit code 130 (SIGINT) or 143 (SIGTERM, SIGHUP);
a verb that keeps something then has `kept(args, command) -> str`: what is kept, and how to go on.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress

from autogaze.cli.completion import SHELLS, completion
from autogaze.extras import explain
from autogaze.garbage import imports_kept
from autogaze.interrupt import InterruptError, interruptible

VERBS = {  # verb: (module, one line of help)
    "train": ("autogaze.cli.train", "train reconstructor, labels, pretraining and RL on a folder of videos"),
    "adapt": ("autogaze.cli.adapt", "teach a ViT to understand gazed patches, without labels"),
    "gaze": ("autogaze.cli.gaze", "look at videos: overlay, arrays, summary"),
    "export": ("autogaze.cli.export", "write a checked ONNX or TensorRT file"),
    "evaluate": ("autogaze.cli.evaluate", "reconstruction loss against ratio, beside other selectors"),
    "calibrate": (
        "autogaze.cli.calibrate",
        "fit the stop rule of a model again, on folders of videos",
    ),
    "gallery": ("autogaze.cli.gallery", "still pictures of where the gaze goes, for many videos at once"),
    "info": ("autogaze.cli.info", "say what a checkpoint, ONNX file or engine is, or whether gazing pays for a ViT"),
    "warm-up": ("autogaze.cli.warm_up", "compile on this GPU what clips of any shape need"),
    "demo": ("autogaze.cli.demo", "try it in a browser: upload a video or use the webcam"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    if argv is None:
        _open_closed_descriptors()
        _let_threads_sleep()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = _Command(arguments, alone=argv is None)
    with interruptible(command.report, last=argv is None) as interrupts:
        try:
            return command.run()
        except BrokenPipeError:  # the reader of stdout went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except InterruptError as error:
            interrupted = error
        except Exception as error:
            if interrupts.caught is None:  # else a library made another error of it
                return _mistake(error, arguments)
            interrupted = interrupts.caught
        command.report(interrupted)
        return interrupted.exit_code


def _open_closed_descriptors() -> None:
    """Standard streams that were closed lead nowhere; else the next file would get the number, and somebody's words."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (for as long as the process)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _let_threads_sleep() -> None:
    """Where nothing can be compiled PyTorch's own threads decode, which by default spin while they wait: beside other
    work, two then take twenty times as long as one. PyTorch is not loaded yet and reads this when it is."""
    told = any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"))
    if not told and not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")):
        os.environ["OMP_WAIT_POLICY"] = "passive"


class _Command:
    """A verb with its arguments; `alone` if this process does nothing else."""

    def __init__(self, arguments: Sequence[str], alone: bool) -> None:
        self.arguments, self.alone, self.args = arguments, alone, argparse.Namespace()

    def run(self) -> int:
        self.args = _parse(self.arguments, self.alone)
        return int(self.args.run(self.args))

    def report(self, error: InterruptError) -> None:
        """One line, from the first of several processes that work together."""
        if os.environ.get("RANK", "0") != "0" or os.environ.get("SLURM_PROCID", "0") != "0":
            return
        again = shlex.join(["autogaze", *self.arguments])
        kept = self.args.kept(self.args, again) if hasattr(self.args, "kept") else ""
        start = "\n" if sys.stderr.isatty() else ""  # below a progress bar
        print(f"{start}autogaze: interrupted by {error}{'; ' + kept if kept else ''}", file=sys.stderr, flush=True)


def _mistake(error: Exception, arguments: Sequence[str]) -> int:
    """One line for what a user can put right; anything else is an error in this program.

    Raises:
        Exception: `error`, if it is no mistake of the user.
    """
    if isinstance(error, ModuleNotFoundError):
        error = explain(error, f"autogaze {arguments[0]}" if arguments else "autogaze")
    if not isinstance(error, ValueError | OSError | ImportError):
        raise error
    print(f"autogaze: {_one_line(error)}", file=sys.stderr)
    return 2


def _parse(arguments: Sequence[str], alone: bool) -> argparse.Namespace:
    """Arguments of a verb. Its key=value words may stand anywhere: argparse takes only the first ones in a row."""
    parser = _parser(arguments, alone)
    for before, word in zip(["autogaze", *arguments], arguments, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):  # an empty path would be the present folder
            named = f"{word} is" if word else f"the word after {before} is"
            raise ValueError(f"{named} empty: is a variable of the shell not set?")
    args, rest = parser.parse_known_args(arguments)
    takes = hasattr(args, "settings")
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not takes]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:
        args.settings = [*args.settings, *rest]
    return args


def _parser(arguments: Sequence[str], alone: bool = False) -> argparse.ArgumentParser:
    """The parser, with the arguments of the one verb that is named, or of all for a script that completes them."""
    parser = argparse.ArgumentParser(prog="autogaze", description="Choose where in a video to look, before a ViT does.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    parser.add_argument(
        "--print-completion", action=_Completion, choices=SHELLS, help="print a script that completes commands in SHELL"
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    completing = any(word.startswith("--print-completion") for word in arguments)
    named = next((word for word in arguments if not word.startswith("-")), None)
    for verb, (module, line) in VERBS.items():
        sub = verbs.add_parser(verb, help=line, description=line[0].upper() + line[1:] + ".")
        if completing:
            with suppress(ModuleNotFoundError):  # of an extra that is not installed: the verb alone is completed
                importlib.import_module(module).add_arguments(sub)
        elif verb == named:
            with imports_kept() if alone else nullcontext():
                command = importlib.import_module(module)
            command.add_arguments(sub)
            sub.set_defaults(run=command.run)
            if hasattr(command, "kept"):
                sub.set_defaults(kept=command.kept)
    return parser


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: object, *__: object) -> None:
        print(completion(parser, str(shell)))
        parser.exit()


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(version("autogaze"))
        parser.exit()


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        name = str(error.filename).replace("\n", "\\n")
        return f"{error.strerror}: {name}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
