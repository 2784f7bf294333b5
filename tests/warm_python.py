"""Processes that do not import torch and transformers again: each is forked from a Python that has, as on a fresh start but warm.

The package itself is not imported before the fork, so that what a process needs of it, it must import.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterable
from pathlib import Path

#: what takes long to import
SLOW = (
    "accelerate",
    "datasets",
    "evaluate",
    "matplotlib.figure",
    "peft",
    "rich.progress",
    "scipy.stats",
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
    "transformers.models.vit.modeling_vit",
    "transformers.trainer",
    "typer",
)
TIMEOUT = 600  # seconds; a free core needs a few


class WarmPython:
    """Starts processes as ``python`` does, with the same words after it.

    Args:
        without: what of `SLOW` each process imports itself.
        environment: variables of the Python that the processes are forked from; what is read on import counts here alone.
    """

    def __init__(self, without: Iterable[str] = (), **environment: str) -> None:
        tests = Path(__file__).parent
        path = os.pathsep.join([str(tests.parent), str(tests), *filter(None, sys.path)])
        self._server = subprocess.Popen(
            [sys.executable, __file__, *(name for name in SLOW if name not in without)],
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *words: object, folder: Path | None = None, **environment: str) -> WarmProcess:
        """A process of its own.

        Args:
            words: ``"-m", MODULE``, ``"-c", CODE`` or a script, then its arguments.
            folder: where it works.
            environment: variables of this process alone.
        """
        return WarmProcess(self, [str(word) for word in words], folder or Path.cwd(), environment)

    def run(self, *words: object, timeout: float = TIMEOUT, **where: object) -> subprocess.CompletedProcess:
        """Start a process and wait for its end."""
        return self.start(*words, **where).wait(timeout)

    def ask(self, timeout: float = TIMEOUT, /, **question: object) -> int:
        """The server's answer to a question: the process it has forked, or the exit code of one that has ended."""
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            raise TimeoutError(f"no answer in {timeout} seconds to {question}")
        return self.answer()

    def answer(self) -> int:
        """The next answer, however long it takes."""
        return int(self._server.stdout.readline())

    def close(self) -> None:
        """End the server."""
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


class WarmProcess:
    """A process that `WarmPython.start` has started; ``pid`` takes signals."""

    def __init__(self, python: WarmPython, words: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._python, self._words = python, words
        self._said = tempfile.TemporaryDirectory()
        self._files = [str(Path(self._said.name) / name) for name in ("stdout", "stderr")]
        for name in self._files:  # it may be killed before it writes
            Path(name).touch()
        self.pid = python.ask(words=words, folder=str(folder), environment=environment, files=self._files)

    def wait(self, timeout: float = TIMEOUT) -> subprocess.CompletedProcess:
        """Its exit code, and what it has said, once it has ended; what takes longer is killed.

        Raises:
            TimeoutError: it was; with the end of what it has said.
        """
        late = False
        try:
            code = self._python.ask(timeout, ended=self.pid)
        except TimeoutError:  # its end must be answered before another question is asked
            os.kill(self.pid, signal.SIGKILL)
            code, late = self._python.answer(), True
        with self._said:
            said = [Path(name).read_bytes().decode() for name in self._files]
        if late:
            raise TimeoutError(f"{self._words} took more than {timeout} seconds: {''.join(said)[-3000:]}")
        return subprocess.CompletedProcess(self._words, code, *said)


# ---------------------------------------------------------------------- the server


def serve(questions: Iterable[str]) -> dict:
    """Answer questions until there are no more; in a process that was forked, return what it is to do."""
    for line in questions:
        question = json.loads(line)
        if "ended" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["ended"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                return question
        print(answer, flush=True)
    sys.exit()


def become(folder: str, environment: dict[str, str], files: list[str]) -> None:
    """Make this process that of a job."""
    os.chdir(folder)
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate(files, 1):
        os.dup2(os.open(name, os.O_WRONLY), number)


def execute(words: list[str]) -> None:
    """Do what ``python`` does with these words."""
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(words[0])
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    job = serve(sys.stdin)
    become(job["folder"], job["environment"], job["files"])
    execute(job["words"])
