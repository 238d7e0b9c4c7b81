"""A service for the tests: deploy/mla-serve with a synthetic checkpoint, on CPU ranks."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(os.environ.get("MLA_BIN", ROOT / "build/release/bin"))
GOLDEN = ROOT / "tests/golden"
READY_S = 120.0


def bash(script: str, *arguments: str) -> None:
    """Runs a line with the functions of deploy/lib.sh."""
    command = ["bash", "-euc", f'source "$0"; {script}', str(ROOT / "deploy/lib.sh"), *arguments]
    subprocess.run(command, check=True, env={**os.environ, "MLA_BIN": str(BIN)}, timeout=READY_S,
                   stderr=subprocess.DEVNULL)  # fmt: skip


def model(case: str, layers: str) -> Path:
    """The case's synthetic checkpoint, made once, beside the programs."""
    folder = BIN.parent / "models" / case
    bash('mla_model "$1" "$2" "$3"', str(GOLDEN / case / "config.json"), layers, str(folder))
    return folder


def within(seconds: float, condition: Callable[[], bool]) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


class Service:
    """Runs until it is closed. Options are those of mla-serve. Without a checkpoint it serves a
    golden case's."""

    def __init__(self, *options: str, case: str = "v3-tiny", layers: str = "0,1",
                 endpoint: str = "", checkpoint: Path | None = None):  # fmt: skip
        self.folder = Path(tempfile.mkdtemp(prefix="mla-python."))
        self.endpoint = endpoint or f"ipc://{self.folder}/clients"
        self._command = [
            "setpriv", "--pdeathsig", "TERM", "--", str(ROOT / "deploy/mla-serve"),
            "--model", str(checkpoint or model(case, layers)), "--endpoint", self.endpoint,
            "--log-dir", str(self.folder), "--bind", "none", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Also again, on the same endpoint."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            stderr=(self.folder / "serve.log").open("a"),
            env={**os.environ, "MLA_BIN": str(BIN), "TMPDIR": str(self.folder),
                 "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        out = self._process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], READY_S)
        words = out.readline().split() if ready else []
        if len(words) != 2 or words[0] != "ready":
            log = (self.folder / "serve.log").read_text()
            self.close()
            raise AssertionError(f"the service is not ready: {log}")
        self.endpoint = words[1]

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            if self._process.stdout:
                self._process.stdout.close()
            self._process = None

    def pids(self, program: str) -> list[int]:
        """Of this service's processes of that name."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = any(str(self.folder).encode() in word for word in words)
            if ours and words[0].endswith(b"/" + program.encode()):
                found.append(int(process.name))
        return found

    def signal(self, program: str, number: signal.Signals) -> None:
        pids = self.pids(program)
        assert pids, f"no {program} runs"
        for pid in pids:
            os.kill(pid, number)

    def close(self) -> None:
        self.stop()
        for left in self.folder.glob("mla-serve.*"):
            shutil.rmtree(Path("/dev/shm") / left.name, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
