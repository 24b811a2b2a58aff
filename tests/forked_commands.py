"""Commands that start at once: forks of `python tests/forked_commands.py SOCKET`, which has all imports.

Importing torch, transformers, TRL, lm-eval and mergekit takes each process of its own some seconds.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

NAMES = ("ordermerge", "mergekit-yaml", "python")
IMPORTS = (
    "ordermerge.cli",
    "ordermerge.commands.run",
    "ordermerge.eval.scoring.score",
    "ordermerge.train.sft",
    "mergekit.scripts.run_yaml",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "trl",
    "peft",
    "matplotlib.pyplot",
)
# What stands on PATH under each name: it lends its files, and waits for the exit status.
CLIENT = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    call = json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)])
    socket.send_fds(server, [call.encode() + b"\\0"], [0, 1, 2])
    sys.exit(int(server.makefile().read() or 70))
"""


def write_clients(folder: Path, address: str) -> None:
    """Write the commands to a folder for PATH."""
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=address))
        (folder / name).chmod(0o755)


def serve(address: str) -> None:
    """Import everything, then run a command for each client, until killed."""
    for name in IMPORTS:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(client)
            client.close()


def _answer(client: socket.socket) -> None:
    """Be the command of one client, to the end of this process."""
    message, files, _, _ = socket.recv_fds(client, 1 << 16, 3)
    while not message.endswith(b"\0"):
        message += client.recv(1 << 16)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    name, arguments, folder, environment = json.loads(message[:-1])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [name, *arguments]
    status = _status(_COMMANDS[name])
    sys.stdout.flush()
    sys.stderr.flush()
    client.sendall(str(status).encode())
    os._exit(status)


def _status(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _ordermerge() -> None:
    from ordermerge.cli import main

    main(prog_name="ordermerge")


def _mergekit_yaml() -> None:
    from mergekit.scripts.run_yaml import main

    main(prog_name="mergekit-yaml")


def _python() -> None:
    if sys.argv[1] == "-c":
        exec(sys.argv[2], {"__name__": "__main__"})
    else:
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")


_COMMANDS = {"ordermerge": _ordermerge, "mergekit-yaml": _mergekit_yaml, "python": _python}

if __name__ == "__main__":
    serve(sys.argv[1])
