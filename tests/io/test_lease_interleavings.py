"""Builds that share an object store, in any order of their requests and of the answers to them.

Every request waits until it is let through, and so does its answer; either may be lost; a build may be killed
anywhere; each machine has clocks of its own; and time passes when the test says so.
"""

import errno
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgindex.errors import OutputError, SupersededError
from imgindex.generations.layout import Output, current_name, make_current
from imgindex.io import object_stores, output_lock, retries
from imgindex.io.object_protocol import Found, Versioned
from imgindex.job.publish import _check_unsuperseded

OUTPUT = Output("fake://bucket/out")
LOCK = "fake://bucket/out/.lock"
SECOND = 1.0

T = TypeVar("T")


class Killed(BaseException):
    """Ends the thread of a build that was killed."""


class Actor:
    """A thread that runs only when it is told to, up to its next request, answer or sleep."""

    def __init__(self, world: "World", work: Callable[[], None], machine: int) -> None:
        self.machine = machine
        self.wakes = 0.0
        self.killed = self.ended = False
        self.loses: str | None = None  # what of its next write is lost
        self._world = world
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(work,), daemon=True).start()
        world.actors.append(self)

    def _run(self, work: Callable[[], None]) -> None:
        self._go.acquire()
        try:
            work()
        except Killed:
            pass
        except BaseException as error:  # of a wrong test, or a wrong lease
            self._error = error
        self.ended = True
        self._paused.release()

    def step(self) -> None:
        self._world.current = self
        self._go.release()
        self._paused.acquire()
        if self._error:
            raise self._error

    def pause(self) -> None:
        if not self.killed:
            self._paused.release()
            self._go.acquire()
        if self.killed:
            raise Killed


class World:
    """The store, the time, and those who use both."""

    def __init__(self) -> None:
        self.now = 0.0
        self.actors: list[Actor] = []
        self.current: Any = None
        self.files: dict[str, Versioned] = {}
        self.versions = 0
        self.published: list[tuple[str | None, str]] = []  # what was live before, and what came
        self.renewed = 0.0  # when the lease was last written
        self.silences: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.current.wakes = self.now + seconds
        self.current.pause()

    def clock(self) -> float:
        """Of the machine of whoever asks: they disagree by days, but not about how long a second is."""
        return 1e6 + self.now + 1e5 * float(self.current.machine)

    def request(self, apply: Callable[[], T], writes: bool = False) -> T:
        actor = self.current
        actor.pause()
        loses = actor.loses if writes else None
        if writes:
            actor.loses = None
        if loses == "request":
            raise OSError(errno.EIO, "the request was lost")
        result = apply()
        actor.pause()
        if loses == "answer":
            raise OSError(errno.EIO, "the answer was lost")
        return result

    # As an object store.

    def find(self, path: str) -> Found | None:
        file = self.request(lambda: self.files.get(path))
        return file and Found(path, len(file.data), "", 0.0)

    def read(self, path: str, start: int, size: int | None) -> bytes:
        return self.request(lambda: self.files[path].data)

    def read_versioned(self, path: str) -> Versioned | None:
        return self.request(lambda: self.files.get(path))

    def replace(self, path: str, data: bytes, version: str | None) -> str | None:
        return self.request(lambda: self._replace(path, data, version), writes=True)

    def _replace(self, path: str, data: bytes, version: str | None) -> str | None:
        found = self.files.get(path)
        if (found and found.version) != version:
            return None
        self.versions += 1
        self.files[path] = Versioned(data, str(self.versions))
        if path == LOCK:
            self._look_at_lease(found and json.loads(found.data), json.loads(data))
        else:
            self.published.append((found and found.data.decode().strip(), data.decode().strip()))
        return str(self.versions)

    def _look_at_lease(self, before: dict[str, Any] | None, after: dict[str, Any]) -> None:
        """Notes for how long a lease had not been renewed that somebody has taken over."""
        if before and not before.get("released") and before["owner"] != after["owner"]:
            self.silences.append(self.now - self.renewed)
        self.renewed = self.now


class Build:
    """What a build does with the output: it takes the lease, works, publishes, and gives the lease back."""

    def __init__(self, world: World, number: int, begins: float, takes: float, submitted: bool) -> None:
        self.world, self.number, self.takes, self.submitted = world, number, takes, submitted
        self.name = f"20260101T00000{number}Z-0000000{number}"
        self.ended: str | None = None
        self.before: str | None = None  # what was live when it was planned
        self.actors = [Actor(world, self._run, number)]
        self.actors[0].wakes = begins

    def kill(self) -> None:
        for actor in self.actors:
            actor.killed = True

    def stall(self, seconds: float) -> None:
        """As when the machine is asleep, or its network holds back what is under way."""
        for actor in self.actors:
            actor.wakes = self.world.now + seconds

    def _run(self) -> None:
        try:
            self._build()
        except SupersededError:
            self.ended = "superseded"
        except OutputError as error:
            self.ended = "refused" if "is being written" in str(error) else "failed"
        else:
            self.ended = "published"

    def _build(self) -> None:
        holder = {"owner": self.name, "host": "there", "pid": self.number, "since": 1e9}
        lease = output_lock.Lease(LOCK, holder)
        lease.take()
        if self.submitted:
            plan = self._plan(None)
            self._release(lease)
            self._publish(plan)
            return
        is_over = SimpleNamespace(wait=self._stopped)
        self.over = self.kept = False
        self.actors.append(Actor(self.world, lambda: self._keep(lease, is_over), self.number))
        try:
            self._publish(self._plan(output_lock.Claim(OUTPUT.root, self.name, 0.0)))
        finally:
            self.over = True
            while not self.kept:
                self.world.sleep(SECOND)
            self._release(lease)

    def _plan(self, claim: output_lock.Claim | None) -> Any:
        self.before = current_name(OUTPUT)
        previous = self.before and SimpleNamespace(name=self.before)
        return SimpleNamespace(output=OUTPUT, claim=claim, previous=previous)

    def _publish(self, plan: Any) -> None:
        self.world.sleep(self.takes)
        make_current(OUTPUT, self.name, lambda: _check_unsuperseded(plan))

    def _release(self, lease: output_lock.Lease) -> None:
        with output_lock._given_back(LOCK):
            lease.release()

    def _keep(self, lease: output_lock.Lease, stop: Any) -> None:
        lease.keep(stop)
        self.kept = True

    def _stopped(self, seconds: float) -> bool:
        until = self.world.now + seconds
        while not self.over and self.world.now < until:
            self.world.sleep(SECOND)
        return self.over


@contextmanager
def patched(world: World) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        time = SimpleNamespace(
            sleep=world.sleep, monotonic=world.clock, time=world.clock, strftime=output_lock.time.strftime,
            localtime=output_lock.time.localtime,
        )  # fmt: skip
        patch.setattr(output_lock, "time", time)
        patch.setattr(retries, "time", time)
        patch.setattr("imgindex.runtime.signals.switching", nullcontext)  # each build has one of its own
        patch.setattr(object_stores, "_store_of", lambda path: world)
        yield


builds_of = st.tuples(
    st.sampled_from([0.0, 3.0, 15.0, 140.0]),  # when it begins
    st.sampled_from([0.0, 20.0, 100.0, 300.0]),  # seconds that it takes
    st.booleans(),  # whether it is submitted, to go on without the lease
)
events = st.tuples(
    st.sampled_from(["step", "step", "run", "run", "stall", "kill", "lose request", "lose answer"]),
    st.integers(0, 60),
)


@settings(max_examples=150)
@example([(0.0, 100.0, False), (15.0, 300.0, False)], [("run", 10), ("stall", 60)])
@example([(0.0, 20.0, False), (15.0, 0.0, False)], [("run", 10), ("lose answer", 0)])
@given(st.lists(builds_of, min_size=2, max_size=4), st.lists(events, max_size=40))
def test_whatever_the_order(
    of_builds: list[tuple[float, float, bool]], schedule: list[tuple[str, int]]
) -> None:
    world = World()
    with patched(world):
        builds = [Build(world, number, *one) for number, one in enumerate(of_builds)]
        try:
            for what, which in schedule:
                awake = [actor for actor in world.actors if not actor.ended and actor.wakes <= world.now]
                if what == "stall":
                    builds[which % len(builds)].stall(60 + 8 * which)
                elif what == "run":  # everybody, for some requests, as in a time without trouble
                    for _ in range(which):
                        run_all(world)
                elif what == "kill":
                    builds[which % len(builds)].kill()
                elif what.startswith("lose"):
                    world.actors[which % len(world.actors)].loses = what.removeprefix("lose ")
                elif awake:
                    awake[which % len(awake)].step()
            for _ in range(3000):
                if all(actor.ended for actor in world.actors):
                    break
                run_all(world)
            assert all(actor.ended for actor in world.actors)
        finally:
            for build in builds:
                build.kill()
            for actor in world.actors:
                while not actor.ended:
                    actor.step()
    assert all(seconds >= output_lock.LEASE_SECONDS for seconds in world.silences)
    # Each was made for what was live before it, so that none has undone another.
    live = None
    for before, name in world.published:
        assert before == live == next(build.before for build in builds if build.name == name)
        live = name
    names = [name for _, name in world.published]
    assert len(set(names)) == len(names)
    for build in builds:
        if not build.actors[0].killed and build.ended != "failed":
            assert (build.ended == "published") == (build.name in names)
    # Where nothing is lost and nobody dies, somebody publishes.
    if not any(what.startswith(("kill", "lose", "stall")) for what, _ in schedule):
        assert names


def run_all(world: World) -> None:
    """Lets all that are awake take a step; where they all sleep, time passes."""
    awake = [actor for actor in world.actors if not actor.ended and actor.wakes <= world.now]
    for actor in awake:
        actor.step()
    if not awake:
        world.now += SECOND
