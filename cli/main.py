"""The command line: each command in a file of its own parses, calls the library once, and prints."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer

import sqlimage

from . import (
    audit,
    boot,
    capture,
    cat,
    compact,
    diff,
    edit,
    extent,
    find,
    flatten,
    get,
    info,
    join,
    ls,
    merge,
    mkdir,
    mount,
    mv,
    prune,
    pull,
    push,
    put,
    rebase,
    receive,
    restore,
    rm,
    send,
    serve,
    sign,
    split,
    sql,
    squash,
    tour,
    unmount,
    verify,
    versions,
)
from . import key as key_
from . import property as property_
from .arguments import with_search
from .keys import with_keys
from .output import message, what_is_left

EXIT_CODES = """\
0 done
1 `verify` found damage, or what nobody who is trusted has signed
2 the command or an argument is not right
3 what was asked for does not exist
4 refused, because it would harm something; nothing was written
5 the file is not an image, or it is damaged
6 the system refused (no space, no permission, a failing disk)
7 it is encrypted, and no key that was given opens it
70 an error inside sqlimage
130 interrupted; a file or tree that was being made is not there, of what travels whole segments stay"""

app = typer.Typer(
    name="sqlimage",
    help="Volume images that are databases: capture, query, restore and verify disks as one SQLite file.",
    epilog="Exit codes: " + "; ".join(EXIT_CODES.splitlines()) + ".",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sqlimage {sqlimage.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


_COMMANDS = (
    *(capture, restore, info, ls, cat, get, extent, put, rm, mkdir, mv, mount, unmount, serve, boot),
    *(versions, diff, merge, squash, prune, rebase, flatten, compact),
    *(push, pull, split, join, send, receive),
    *(sql, audit, find, verify, sign, tour),
)
_WITHOUT_SEARCH = (unmount, tour)
for module in _COMMANDS:
    body = module.command if module in _WITHOUT_SEARCH else with_keys(with_search(module.command))
    app.command(name=module.__name__.rpartition(".")[2], epilog=f"Example: {module.EXAMPLE}")(body)
for group, name in ((property_.app, "property"), (edit.app, "edit"), (key_.app, "key")):
    for each in group.registered_commands:
        assert each.callback is not None
        each.callback = with_keys(with_search(each.callback))
    app.add_typer(group, name=name)


def main() -> None:
    """The console script. Whatever happens, the user sees one line that says what, and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads our output may stop, as with any other program
    # No linear algebra is done here, but its threads would spin; and nothing here makes cycles worth looking for often.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(100_000, 50, 50)
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        if code == 130:
            raise KeyboardInterrupt
        raise SystemExit(code if isinstance(code, int) else 0)
    except sqlimage.SqlimageError as problem:
        message(f"sqlimage: {problem}")
        raise SystemExit(problem.exit_code) from None
    except KeyboardInterrupt:
        message(f"sqlimage: interrupted; {what_is_left()}")
        raise SystemExit(130) from None
    except Exception as problem:
        raise SystemExit(_unexpected(problem)) from None


def _unexpected(problem: Exception) -> int:
    """The exit code for what is no error of ours: misuse of the command line, or a mistake in the program."""
    show = getattr(problem, "format_message", None)
    if show:
        text = str(show())
        if text.startswith("Usage:"):
            print(text)
        else:
            message(f"sqlimage: {text.rstrip('.')}; `--help` shows what is allowed")
        return 2
    if isinstance(problem, OSError) and problem.strerror:
        message(f"sqlimage: {problem.filename or 'the system'}: {problem.strerror}")
        return 6
    if os.environ.get("SQLIMAGE_DEBUG"):
        traceback.print_exc()
    message(f"sqlimage: an error inside sqlimage: {type(problem).__name__}: {problem}; SQLIMAGE_DEBUG=1 shows where")
    return 70


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
