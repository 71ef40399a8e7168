"""Arms that live at the same time and take turns: one runs a spell of steps while the others wait.

Two processes that run one after the other find a shared machine in two different moods, and these differ by more than
an arm may add. Spells of a second or two, in turn, share the same mood. What Ray's and raykube's drivers do beside the
steps falls on all arms alike.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks import rows

T = TypeVar("T")

_START_S, _TURN_S, _END_S = 300, 120, 120
#: The orders of four arms in successive rounds: within four rounds, each arm comes once after each of the others.
_ORDERS = ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))


@dataclass(frozen=True)
class Turns:
    """A rank's side: each iteration waits for this arm's turn, which ends when the next iteration is asked for.

    Attributes:
        path: the socket on which the relay gives turns; "" gives them without waiting, for all ranks but one.
        count: number of turns.
    """

    path: str
    count: int

    def __iter__(self) -> Iterator[int]:
        if not self.path:
            yield from range(self.count)
            return
        with socket.socket(socket.AF_UNIX) as relay:
            relay.connect(self.path)
            for number in range(self.count):
                if not relay.recv(1):
                    raise SystemExit("the relay has ended")
                yield number
                relay.send(b".")


@dataclass(frozen=True)
class Arm:
    """A running arm: its process, the socket of its turns, and the file of its output."""

    name: str
    child: subprocess.Popen[bytes]
    turns: socket.socket
    output: Path

    def turn(self) -> None:
        """Give the arm a turn and wait for its end. Raises SystemExit, with the arm's output, when it fails."""
        try:
            self.turns.send(b".")
            ended = not self.turns.recv(1)
        except ConnectionError:
            ended = True
        except TimeoutError as error:
            raise _failed(self.name, f"its turn took more than {_TURN_S} s", self.output) from error
        if ended:
            raise _failed(self.name, "it ended before its turns did", self.output)

    def end(self) -> None:
        """Wait until the process has ended. Raises SystemExit, with the arm's output, when it fails."""
        try:
            code = self.child.wait(_END_S)
        except subprocess.TimeoutExpired as error:
            raise _failed(self.name, str(error), self.output) from error
        if code:
            raise _failed(self.name, f"exit code {code}", self.output)


def _failed(name: str, why: str, output: Path) -> SystemExit:
    """Return an error with the end of an arm's output."""
    return SystemExit(f"{name}: {why}\n{output.read_text(errors='replace')[-4000:]}")


def run(commands: Mapping[str, Callable[[Path], list[str]]], folder: Path, rounds: int, rest_s: float) -> None:
    """Start the arms one after another, have them take turns, and wait for their end.

    Args:
        commands: for each arm, the command that runs it, given its own folder; its turns come from the socket
            ``turns`` in that folder.
        folder: has a short name, because the paths of Ray's sockets in it may have at most 107 bytes.
        rounds: turns of each arm.
        rest_s: seconds between the last start and the first turn.

    Raises:
        SystemExit: an arm failed or took too long; with the end of its output. Nothing of any arm is left running.
    """
    with ExitStack() as running:
        arms = [running.enter_context(_started(name, command, folder / name)) for name, command in commands.items()]
        time.sleep(rest_s)
        for turn in range(rounds):
            for arm in order(arms, turn):
                arm.turn()
        for arm in arms:
            arm.end()


def order(arms: Sequence[T], turn: int) -> list[T]:
    """Return the arms, four at most, in the order of one round."""
    return [arms[place] for place in _ORDERS[turn % len(_ORDERS)] if place < len(arms)]


@contextmanager
def _started(name: str, command: Callable[[Path], list[str]], folder: Path) -> Iterator[Arm]:
    """Start an arm and wait until its rank 0 is ready for a turn; in the end, nothing of it is left."""
    folder.mkdir()
    output = folder / "output"
    with socket.socket(socket.AF_UNIX) as server, output.open("wb") as file:
        server.bind(str(folder / "turns"))
        server.listen(1)
        child = subprocess.Popen(
            command(folder),
            cwd=rows.ROOT,
            env=rows.own_environ(folder),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            turns = _accepted(server, child)
            if turns is None:
                raise _failed(name, "it took no turn", output)
            with turns:
                turns.settimeout(_TURN_S)
                yield Arm(name, child, turns, output)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _accepted(server: socket.socket, child: subprocess.Popen[bytes]) -> socket.socket | None:
    """Return the socket of an arm's rank 0; None when the arm has ended or takes too long."""
    for _ in range(_START_S):
        if select.select([server], [], [], 1)[0]:
            return server.accept()[0]
        if child.poll() is not None:
            break
    return None
