"""The outbox: whatever fails, and whoever is killed, the newest word on everything arrives."""

import tempfile
import threading
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from nightscout_lakehouse.lib.alerts.delivery import deliver
from nightscout_lakehouse.lib.alerts.engine import Kind
from nightscout_lakehouse.lib.alerts.rules import Rule
from nightscout_lakehouse.lib.alerts.store import AlertStore, Draft
from nightscout_lakehouse.lib.alerts.targets import Target
from nightscout_lakehouse.lib.alerts.wording import Text

TARGETS = [Target("first 1 (json)", "first", SecretStr("")), Target("first 2 (ntfy)", "first", SecretStr(""))]
NAMES = tuple(target.name for target in TARGETS)


class Killed(BaseException):
    """The process ends here."""


class World:
    """A service that fails and a process that dies as told; every arrival is counted."""

    def __init__(self, store: AlertStore) -> None:
        self.store, self.now = store, datetime(2026, 3, 10, tzinfo=UTC)
        self.arrived, self.killed_after = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self.newest: dict[Rule, str] = {}
        self.numbers = 0

    def put(self, rule: Rule) -> None:
        self.numbers += 1
        text = Text(f"message {self.numbers}", "")
        self.newest[rule] = text.title
        with self.store.transaction():
            self.store.put([Draft("anna", rule, Kind.RAISED, text, NAMES)], self.now)

    def deliver(self, outcome: str) -> None:
        def send(target: Target, text: Text, kind: Kind) -> str:
            title = text.title.rpartition("] ")[2]
            if outcome == "killed before":
                raise Killed
            if outcome == "fails":
                return "the service answers with HTTP 503"
            self.arrived[target.name, title] += 1
            if outcome == "killed after":
                self.killed_after[target.name, title] += 1
                raise Killed
            return ""

        with suppress(Killed):
            deliver(self.store, TARGETS, now=lambda: self.now, deliver_by=send)


steps = st.lists(
    st.one_of(
        st.sampled_from([Rule.LOW, Rule.HIGH, Rule.STALE]),
        st.sampled_from(["arrives", "fails", "killed before", "killed after"]),
        st.integers(0, 15),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_the_newest_word_arrives_at_least_once_and_nothing_twice_but_after_a_kill(did: list[Rule | str | int]) -> None:
    with tempfile.TemporaryDirectory() as folder, AlertStore(Path(folder)) as store:
        world = World(store)
        for step in did:
            if isinstance(step, Rule):
                world.put(step)
            elif isinstance(step, str):
                world.deliver(step)
            else:
                world.now += timedelta(minutes=step)
        # In the end the service is well, for longer than any back-off.
        world.now += timedelta(minutes=11)
        world.deliver("arrives")
        assert store.due(TARGETS, world.now + timedelta(hours=1)) == []
        for name in NAMES:
            for title in world.newest.values():
                assert world.arrived[name, title] >= 1
        for message, count in world.arrived.items():
            assert count <= 1 + world.killed_after[message]


def test_two_processes_that_deliver_at_once_send_each_message_once(tmp_path: Path) -> None:
    arrived, is_sending, may_go_on = list[str](), threading.Event(), threading.Event()

    def send(target: Target, text: Text, kind: Kind) -> str:
        is_sending.set()
        may_go_on.wait(20)
        arrived.append(f"{target.name} {text.title}")
        return ""

    def run() -> None:
        with AlertStore(tmp_path) as store:
            deliver(store, TARGETS, now=lambda: datetime(2026, 3, 10, tzinfo=UTC), deliver_by=send)

    with AlertStore(tmp_path) as store:
        world = World(store)
        world.put(Rule.LOW)
        world.put(Rule.HIGH)
    processes = [threading.Thread(target=run) for _ in range(2)]
    processes[0].start()
    assert is_sending.wait(20)
    processes[1].start()
    processes[1].join(0.3)
    may_go_on.set()
    for process in processes:
        process.join(20)
    assert sorted(arrived) == [f"{name} message {number}" for name in NAMES for number in (1, 2)]


def test_back_off_grows_to_ten_minutes(tmp_path: Path) -> None:
    with AlertStore(tmp_path) as store:
        world = World(store)
        world.put(Rule.LOW)
        waits = []
        for _ in range(7):
            before = world.now
            while not store.due(TARGETS[:1], world.now):
                world.now += timedelta(minutes=1)
            waits.append((world.now - before) // timedelta(minutes=1))
            for due in store.due(TARGETS[:1], world.now):
                store.settle(due, "no", world.now)
        assert waits == [0, 1, 2, 4, 8, 10, 10]
