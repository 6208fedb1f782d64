"""The command `lit_pretrain VERB ...`.

It finds the verb, runs it, and turns a user's mistake into one message.
"""

import importlib
import io
import os
import signal
import sys
import threading
from types import FrameType

from lit_pretrain import __version__
from lit_pretrain.class_path import search_current_folder
from lit_pretrain.cli.command.verb import dispatch, verbs
from lit_pretrain.errors import (
    INTERRUPTED_EXIT_CODE,
    PREEMPTED_EXIT_CODE,
    SAVING_THREAD,
    UserError,
    did_you_mean,
    message_of,
    refusal_of_system,
)

NEED_POSIX = frozenset(
    (
        "adapter classifier export finetune fit import join merge mixture posttrain prepare scaling"
    ).split()
)
"""Verbs that write datasets, runs or exports."""
TEXTS = frozenset("message prompt sample_prompts separator stop system".split())
"""Options whose values are text and not paths, by the last part of their name."""
DECODING = frozenset("chat generate serve".split())
TRAINING = frozenset("finetune fit posttrain".split())
"""Verbs that a scheduler may preempt and start again."""


def usage() -> str:
    """Write the text of `lit_pretrain --help`."""
    table = verbs()
    width = max(map(len, table))
    lines = [f"  {name:<{width}}  {text}" for name, text in table.items()]
    head = [
        "usage: lit_pretrain VERB [options]",
        "",
        "Train language models, from raw text to a task model.",
        "",
        "verbs:",
    ]
    foot = [
        "",
        (
            "`lit_pretrain VERB --help` lists the options of a verb; `lit_pretrain --version`"
            " prints the version."
        ),
    ]
    return "\n".join([*head, *lines, *foot])


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments after the program's name; from the command line if None. `sys.argv` itself
            stays as it is, because the launcher of multi-process training runs it again.

    Returns:
        The exit code: 0 done, 1 a failure of ours (with a traceback), 2 a mistake in the input, or
        something that the system refused, such as space on a disk, 3 training diverged, 4 it
        collapsed, 75 stopped by a signal or the time limit and ready to be resumed, 76 hung, 130
        interrupted from the keyboard.
    """
    try:
        try:
            code = _run(sys.argv[1:] if argv is None else argv)
        except SystemExit as error:  # a parser's, after --help
            sys.stdout.flush()
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's, which exits with 1
                raise KeyboardInterrupt from error
            raise
        # Not at the interpreter's end, where a reader that has gone could no longer be handled.
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the interpreter complains when it flushes at its end
        return 1
    # Libraries wrap what the system refuses in exceptions of their own; others are raised again.
    except Exception as error:
        if (refused := refusal_of_system(error)) is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        sys.unraisablehook = _report_other_faults
        return UserError.exit_code


def _report_other_faults(unraisable: "sys.UnraisableHookArgs") -> None:
    """Leave it at one line where the system refused something, unless there is another fault.

    The exit callbacks of libraries need memory, too, and an object whose making was broken off
    lacks the attributes that its `__del__` looks for.
    """
    error = unraisable.exc_value
    half_made = (
        isinstance(error, AttributeError)
        and getattr(unraisable.object, "__name__", "") == "__del__"
    )
    if not isinstance(error, MemoryError) and not half_made:
        sys.__unraisablehook__(unraisable)


def command() -> int:
    """Run the verb of the command line in a process of its own.

    Ctrl-C ends it without a traceback.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a job in the background
        # A terminal interrupts all ranks of a run: the first decides, and saves or ends with all.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        signal.signal(signal.SIGINT, _interrupt if first else signal.SIG_IGN)
    if sys.argv[1:2] and sys.argv[1] in DECODING:
        # Before torch is imported. Threads that spin while they wait for one another hold the cores
        # that the others need, where the machine has other work (docs/experiments.md).
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if sys.argv[1:2] and sys.argv[1] in TRAINING and sys.platform != "win32":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _preempt)
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe of another encoding, such as LATIN1, shows what it has no character
        # for by number. By lines, so that messages on standard error come after what led to them
        # where both go into one file.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    code: object = None
    try:
        code = main()
        return code
    except SystemExit as error:
        code = error.code
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed again while Python ends
        if isinstance(code, int) and any(t.name == SAVING_THREAD for t in threading.enumerate()):
            # Only a second signal leaves it: that one waits for no checkpoint, and Python would.
            os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end at once within an import.

    numpy turns it into a RecursionError there.
    """
    if _imports(frame):
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED_EXIT_CODE)
    raise KeyboardInterrupt


def _preempt(number: int, frame: FrameType | None) -> None:
    """End a run that a scheduler stops before its first step or after its last one.

    In between `callbacks/graceful_stop.py` answers, which saves.
    """
    name = signal.Signals(number).name
    os.write(
        2, f"stopped by {name} outside of training: start it again with --resume auto\n".encode()
    )
    if _imports(frame):
        os._exit(PREEMPTED_EXIT_CODE)
    # Not a UserError: a ValueError that is raised within the parser means a wrong value to it.
    raise SystemExit(PREEMPTED_EXIT_CODE)


def _imports(frame: FrameType | None) -> bool:
    """Tell whether a signal has come within an import."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def in_home(argument: str) -> str:
    """Put the home directory in place of the tilde of `--option=~/path`.

    A shell does so only where a word begins with it; a folder called ~ would be made instead. A
    tilde alone is YAML's null.
    """
    option, equals, value = argument.partition("=")
    name = option.removesuffix("+").rpartition(".")[2].removeprefix("--")
    if equals and option.startswith("--") and value.startswith("~/") and name not in TEXTS:
        return f"{option}={os.path.expanduser(value)}"
    return argument


def _run(arguments: list[str]) -> int:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"the argument {os.fsencode(argument)!r} is not UTF-8; type it in a terminal whose"
                " encoding is UTF-8, and rename a file that has such a name"
            ) from None
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"lit_pretrain {__version__}")
        return 0
    verb, rest = arguments[0], [in_home(argument) for argument in arguments[1:]]
    if verb not in verbs():
        hint = did_you_mean(verb, verbs())
        raise UserError(f"there is no verb {verb!r}.{hint} `lit_pretrain --help` lists them.")
    search_current_folder()  # class paths may name a module that lies there
    if sys.platform == "win32" and verb in NEED_POSIX:
        raise UserError(
            f"lit_pretrain {verb} does not work on Windows: it needs the file locks, signals and"
            " syncing of folders of POSIX. Run it in WSL 2"
        )
    module = importlib.import_module(f"lit_pretrain.cli.{verb}")
    return dispatch(f"lit_pretrain {verb}", module.VERB, rest)


if __name__ == "__main__":
    sys.exit(command())
