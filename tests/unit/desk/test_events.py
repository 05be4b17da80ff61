"""Tests of the question `events`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import JSON, BadArgument, RecentEvents
from owsla.desk._events import ABSENT, EVENTS, SIZE, merge_events
from owsla.desk._ring import ENTRY, pack
from owsla.events import BrokerWarning, DeviceConnected, EventManager, NodeStopped, ReloadFailed


def instance(number: int) -> str:
    return f"{number:08x}"


def texts(answer: JSON) -> list[str]:
    return [event["text"].removeprefix("Broker: ") for event in answer["events"]]


class RecentEventsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.recent = RecentEvents(instance(1))

    def happen(self, *names: str, when: float = 1.0) -> None:
        for name in names:
            self.recent.handle(BrokerWarning(name), "0123abcd", when)

    def test_handler(self) -> None:
        """As an event handler it keeps every kind of event."""
        manager = EventManager(lambda: "0123abcd", now=lambda: 1.5)
        manager.add(self.recent)
        manager.emit(NodeStopped(3))
        (event,) = self.recent.answer({})["events"]
        self.assertEqual(
            (event["event"], event["node"], event["time"], event["fields"]), ("node-stopped", "0123abcd", 1500, {"devices": 3})
        )

    def test_first_answer(self) -> None:
        """Without a cursor the answer has the last events, oldest first, and nothing counts as lost."""
        self.happen("a", "b", "c")
        answer = self.recent.answer({"limit": 2})
        self.assertEqual((texts(answer), answer["lost"]), (["b", "c"], 0))
        self.assertEqual(texts(self.recent.answer({"after": ""})), ["a", "b", "c"])

    def test_next(self) -> None:
        """With the cursor of an answer the next one has the events after it, each once."""
        after = self.recent.answer({})["next"]
        self.happen("a", "b", "c")
        answer = self.recent.answer({"after": after, "limit": 2})
        self.assertEqual((texts(answer), answer["lost"]), (["a", "b"], 0))
        answer = self.recent.answer({"after": answer["next"], "limit": 2})
        self.assertEqual(texts(answer), ["c"])
        answer = self.recent.answer({"after": answer["next"]})
        self.assertEqual((texts(answer), answer["lost"]), ([], 0))

    def test_cursor_of_an_event(self) -> None:
        """With the cursor of an event the answer has the events after that one."""
        self.happen("a", "b", "c")
        for question in ({}, {"after": f"{instance(1)}-0"}):
            answer = self.recent.answer(question)
            following = [texts(self.recent.answer({"after": event["cursor"]})) for event in answer["events"]]
            self.assertEqual(following, [["b", "c"], ["c"], []])

    def test_lost(self) -> None:
        """Events that were forgotten before they were read are counted, once."""
        recent = self.recent = RecentEvents(instance(1), events=3)
        after = recent.answer({})["next"]
        self.happen("a", "b", "c", "d", "e")
        answer = recent.answer({"after": after, "limit": 1})
        self.assertEqual((texts(answer), answer["lost"]), (["c"], 2))
        answer = recent.answer({"after": answer["next"]})
        self.assertEqual((texts(answer), answer["lost"]), (["d", "e"], 0))

    def test_bounds(self) -> None:
        """It keeps a thousand events, or fewer if a peer makes them long: 1 MiB of memory at most."""
        self.happen(*(str(number) for number in range(EVENTS + 5)))
        self.assertEqual(texts(self.recent.answer({}))[:1], ["5"])
        long = "x" * 20_000
        self.happen(*[long] * 100)
        size = 8 + len(pack(BrokerWarning(long), "0123abcd", 1.0)) + ENTRY
        self.assertEqual(len(self.recent.answer({})["events"]), SIZE // 2 // size)

    def test_stampede(self) -> None:
        """However many devices come and go, other events are not forgotten. Each kind of loss is counted once."""
        after = self.recent.answer({})["next"]
        self.happen("a")
        for number in range(3000):
            self.recent.handle(DeviceConnected(f"c-{number}", None, "192.0.2.1:5", ""), "0123abcd", 1.0)
        self.happen("b")
        self.assertEqual(texts(self.recent.answer({"warnings": True})), ["a", "b"])
        answer = self.recent.answer({"after": after, "limit": 2})
        self.assertEqual((texts(answer)[0], answer["events"][1]["fields"]["connection_id"]), ("a", "c-2000"))
        self.assertEqual(answer["lost"], 2000)
        answer = self.recent.answer({"after": answer["next"]})
        self.assertEqual((len(answer["events"]), texts(answer)[-1], answer["lost"]), (1000, "b", 0))
        self.assertEqual(self.recent.answer({"after": after, "warnings": True, "limit": 1})["lost"], 0)

    def test_another_instance(self) -> None:
        """Of a process that the cursor does not name, because it has started since, all events are new."""
        self.happen("a", "b")
        self.assertEqual(texts(self.recent.answer({"after": f"{instance(2)}-7"})), ["a", "b"])

    def test_number_of_the_future(self) -> None:
        """A cursor beyond the last event is taken for one of the last event."""
        self.happen("a")
        answer = self.recent.answer({"after": f"{instance(1)}-7"})
        self.assertEqual((texts(answer), answer["next"], answer["lost"]), ([], f"{instance(1)}-1", 0))

    def test_filters(self) -> None:
        """Events are chosen by their names, by a part of their text in any case, or if they are warnings."""
        self.happen("Odd")
        for event in (NodeStopped(3), DeviceConnected("c-1", "Zähler-7", "192.0.2.1:5", ""), ReloadFailed("odd")):
            self.recent.handle(event, "0123abcd", 1.0)

        def names(**args: Any) -> list[str]:
            return [event["event"] for event in self.recent.answer(args)["events"]]

        self.assertEqual(names(kinds=["node-stopped", "reload-failed"]), ["node-stopped", "reload-failed"])
        self.assertEqual(names(query="zÄHLER"), ["device-connected"])
        self.assertEqual(names(query="odd"), ["broker-warning", "reload-failed"])
        self.assertEqual(names(warnings=True), ["broker-warning", "reload-failed"])
        self.assertEqual(names(warnings=True, query="odd", kinds=["reload-failed"]), ["reload-failed"])
        self.assertEqual(names(kinds=[], query="", warnings=False, limit=1), ["reload-failed"])

    def test_filter_and_cursor(self) -> None:
        """Events that a reader does not want are not looked at again."""
        after = self.recent.answer({})["next"]
        self.happen("a", "x", "b")
        answer = self.recent.answer({"after": after, "query": "x"})
        self.assertEqual((texts(answer), answer["next"]), (["x"], f"{instance(1)}-3"))
        answer = self.recent.answer({"after": after, "query": "x", "limit": 1})
        self.assertEqual((texts(answer), answer["next"]), (["x"], f"{instance(1)}-2"))

    def test_bad_arguments(self) -> None:
        """A cursor that is none, and a limit that is no number of events, are refused with a sentence."""
        for args in (
            {"after": "x"},
            {"after": "1"},
            {"after": 7},
            {"after": f"{instance(1)}-0."},
            {"after": f"{instance(1)}-0\n"},
            {"after": ".".join([f"{instance(1)}-0"] * 2000)},
            {"limit": 0},
            {"limit": EVENTS + 1},
            {"limit": "5"},
        ):
            error = self.assertRaises(BadArgument, self.recent.answer, args)
            self.assertRegex(str(error), "^`(after|limit)` is ")


class MergeTests(SynchronousTestCase):
    """The events of several workers."""

    def setUp(self) -> None:
        self.processes = {name: RecentEvents(instance(at)) for at, name in enumerate(("parent", "worker-1", "worker-2"))}
        self.time = 0.0

    def happen(self, name: str, text: str) -> None:
        self.time += 1.0
        self.processes[name].handle(BrokerWarning(text), "0123abcd", self.time)

    def ask(self, *, late: tuple[str, ...] = (), **args: Any) -> JSON:
        answers = [(name, recent.answer(args)) for name, recent in self.processes.items() if name not in late]
        return merge_events(answers, args)

    def test_order(self) -> None:
        """Events are in the order of their times, each with the name of its worker; those of the parent have none."""
        self.happen("worker-2", "a")
        self.happen("worker-1", "b")
        self.happen("parent", "c")
        self.happen("worker-2", "d")
        answer = self.ask()
        self.assertEqual(texts(answer), ["a", "b", "c", "d"])
        self.assertEqual([event["worker"] for event in answer["events"]], ["worker-2", "worker-1", None, "worker-2"])

    def test_first_answer(self) -> None:
        """Without a cursor the answer has the last events of all, and the next one goes on after them."""
        for text in "abcdef":
            self.happen("worker-1" if text < "d" else "worker-2", text)
        answer = self.ask(limit=4)
        self.assertEqual(texts(answer), ["c", "d", "e", "f"])
        self.assertEqual(texts(self.ask(after=answer["next"])), [])
        following = [texts(self.ask(after=event["cursor"])) for event in answer["events"]]
        self.assertEqual(following, [["d", "e", "f"], ["e", "f"], ["f"], []])

    def test_limit(self) -> None:
        """Events beyond the limit come with the next answers, each once."""
        after = self.ask()["next"]
        for text in "abcdefg":
            self.happen("worker-1" if text in "aef" else "worker-2", text)
        seen = []
        for _ in range(4):
            answer = self.ask(after=after, limit=2)
            seen.append(texts(answer))
            after = answer["next"]
        self.assertEqual(seen, [["a", "b"], ["c", "d"], ["e", "f"], ["g"]])
        self.assertEqual(texts(self.ask(after=after)), [])

    def test_replaced(self) -> None:
        """Of a worker that was replaced the new process begins with its first event; nothing of others is told again."""
        self.happen("worker-1", "a")
        self.happen("worker-2", "b")
        after = self.ask()["next"]
        self.processes["worker-2"] = RecentEvents(instance(9))
        self.happen("worker-2", "c")
        self.happen("worker-1", "d")
        answer = self.ask(after=after)
        self.assertEqual((texts(answer), answer["lost"]), (["c", "d"], 0))
        self.assertEqual(texts(self.ask(after=answer["next"])), [])

    def test_late(self) -> None:
        """A worker that does not answer for a while keeps its place: its events come later, each once."""
        self.happen("worker-2", "a")
        after = self.ask()["next"]
        self.happen("worker-2", "b")
        self.happen("worker-1", "c")
        answer = self.ask(after=after, late=("worker-2",))
        self.assertEqual(texts(answer), ["c"])
        for cursor in (answer["next"], answer["events"][0]["cursor"]):
            self.assertEqual(texts(self.ask(after=cursor)), ["b"])

    def test_lost(self) -> None:
        """Lost events of all workers are counted together, once."""
        for name in ("worker-1", "worker-2"):
            self.processes[name] = RecentEvents(self.processes[name].answer({})["next"][:8], events=2)
        after = self.ask()["next"]
        for text in "abcdefgh":
            self.happen("worker-1" if text < "e" else "worker-2", text)
        answer = self.ask(after=after, limit=1)
        self.assertEqual((texts(answer), answer["lost"]), (["c"], 4))
        answer = self.ask(after=answer["next"])
        self.assertEqual((texts(answer), answer["lost"]), (["d", "g", "h"], 0))

    def test_length(self) -> None:
        """However many workers have come and gone, a cursor stays short."""
        after = self.ask()["next"]
        for number in range(100):
            self.processes["worker-2"] = RecentEvents(instance(1000 + number))
            after = self.ask(after=after)["next"]
        self.assertEqual(len(after.split(".")), 3 + ABSENT)
        self.assertIn(f"{instance(1098)}-0", after)

    def test_bad_arguments(self) -> None:
        """A cursor that is none is refused."""
        self.assertRaises(BadArgument, merge_events, [], {"after": "x"})

    @given(st.lists(st.sampled_from(("worker-1", "worker-2", "parent", "ask", "replace", "late"))), st.integers(1, 3))
    def test_each_once(self, steps: list[str], limit: int) -> None:
        """Whatever the order, each event is told once, or counted as lost with its worker, and those of a worker in order."""
        self.setUp()
        seen: list[str] = []
        happened: list[str] = []
        after = self.ask()["next"]
        asks: Mapping[str, Callable[[], JSON]] = {
            "ask": lambda: self.ask(after=after, limit=limit),
            "late": lambda: self.ask(after=after, limit=limit, late=("worker-2",)),
        }
        for number, step in enumerate(steps):
            if step in asks:
                answer = asks[step]()
                self.assertEqual(answer["lost"], 0)
                seen += texts(answer)
                after = answer["next"]
            elif step == "replace":
                while answer := asks["ask"]():
                    seen += texts(answer)
                    after = answer["next"]
                    if not answer["events"]:
                        break
                self.processes["worker-2"] = RecentEvents(instance(1000 + number))
            else:
                happened.append(f"{number} {step}")
                self.happen(step, happened[-1])
        while rest := texts(answer := asks["ask"]()):
            seen += rest
            after = answer["next"]
        self.assertEqual(sorted(seen), sorted(happened))
        for name in self.processes:
            own = [text for text in happened if text.endswith(name)]
            self.assertEqual([text for text in seen if text.endswith(name)], own)
