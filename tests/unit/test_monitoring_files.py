"""The files for Prometheus and Grafana: the alert rules and the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast
from unittest import SkipTest

import yaml
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.http import ParentSource
from tests import is_required

from .http._fakes import NOW, Family, door

_ROOT: Final = Path(__file__).parents[2]
_RULES: Final = _ROOT / "packaging" / "grafana" / "alerts.yaml"
_DASHBOARD: Final = _ROOT / "packaging" / "grafana" / "owsla.json"
_REQUIRED: Final = is_required("PROMTOOL")

Samples = Mapping[str, list[dict[str, str]]]
"""Labels of the samples of each metric, by its name."""

_OPERATORS: Final = frozenset({"and", "or", "unless", "by", "on", "without", "ignoring"})
_OF_PROMETHEUS: Final[Samples] = {
    "up": [{}],
    "ALERTS": [{"alertname": "OwslaDown", "alertstate": "firing", "severity": "critical", "worker": "1", "door": "default"}],
}
"""Metrics that Prometheus makes itself."""


class Reloaded:
    """A configuration that was reloaded."""

    successful = True
    success_time = NOW


class Monitoring(SynchronousTestCase):
    """Base class: the files, and what a gateway with workers says on `/metrics`."""

    def setUp(self) -> None:
        self.rules: list[dict[str, Any]] = yaml.safe_load(_RULES.read_text())["groups"][0]["rules"]
        self.dashboard: dict[str, Any] = json.loads(_DASHBOARD.read_text())
        self.panels = [panel for panel in self.dashboard["panels"] if panel["type"] != "row"]

    def queries(self) -> Iterator[tuple[str, str, str]]:
        """Yield the title, the expression and the text with labels of each query of the dashboard."""
        for panel in self.panels:
            for target in panel["targets"]:
                yield panel["title"], target["expr"], target["legendFormat"]
        for note in self.dashboard["annotations"]["list"]:
            if "target" in note:
                yield note["name"], note["target"]["expr"], note["titleFormat"] + note["textFormat"]
        for variable in self.dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
                assert found is not None
                yield variable["name"], found[1], f"{{{{{found[2]}}}}}"

    def samples(self) -> Samples:
        family = Family(1)
        family.readings = replace(family.readings, reloads=Reloaded())
        world = family.workers[0].world
        world.doors["meters"] = door()
        world.event_drops = {"json": 0}
        world.readings = replace(
            world.readings, certificate_expires=lambda: NOW, crl_expires=lambda: NOW, ocsp_expires=lambda: NOW
        )
        found: dict[str, list[dict[str, str]]] = defaultdict(list)
        for metric in self.successResultOf(ParentSource(cast(Any, Clock()), family.readings).metrics()):
            for sample in metric.samples:
                found[sample.name].append(sample.labels)
        found.update(_OF_PROMETHEUS)
        target = {"instance": "127.0.0.1:9100", "job": "owsla"}
        return {name: [{**target, **labels} for labels in samples] for name, samples in found.items()}


class MetricsTests(Monitoring):
    """Metrics, labels and values in expressions are those of a gateway."""

    def setUp(self) -> None:
        super().setUp()
        self.known = self.samples()

    def check(self, expression: str, text: str) -> None:
        """Check the names in an expression, and those of labels in a text for people."""
        # First those with matchers; what remains, without texts and ranges, has metrics, functions, and labels in brackets.
        labels: set[str] = set()
        for name, matchers in re.findall(r'([a-zA-Z_:][\w:]*)?\{((?:[^}"]|"[^"]*")*)\}', expression):
            labels |= self.selected(name, re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', matchers))
        rest = re.sub(r'[a-zA-Z_:][\w:]*\{(?:[^}"]|"[^"]*")*\}|\{(?:[^}"]|"[^"]*")*\}|\[[^]]*\]', " ", expression)
        grouping = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", rest)
        rest = re.sub(r"\b(?:by|on|without|ignoring)\s*\([^)]*\)", " ", rest)
        for name in re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", rest):
            if name not in _OPERATORS:
                labels |= self.selected(name, [])
        used = {label.strip() for group in grouping for label in group.split(",")}
        used |= set(re.findall(r"{{ ?(?:\$labels\.)?(\w+) ?}}", text))
        self.assertEqual(used - labels, set(), expression)

    def selected(self, name: str, matchers: list[tuple[str, str, str]]) -> set[str]:
        """Return the labels of the metrics that a selector selects. Fail if it can select none."""
        names = [name]
        for label, operator, value in matchers:
            if label == "__name__":
                self.assertEqual(operator, "=~")
                names = [each for each in self.known if re.fullmatch(value, each)]
        selected = [labels for each in names for labels in self.known.get(each, [])]
        self.assertTrue(selected, f"no metric {name or matchers}")
        for label, operator, value in matchers:
            if label == "__name__":
                continue
            self.assertIn(operator, ("=", "=~"))
            present = {labels.get(label, "") for labels in selected}
            self.assertTrue(any(label in labels for labels in selected), f"{name} has no label {label}")
            if "$" not in value:
                matching = {each for each in present if (each == value if operator == "=" else re.fullmatch(value, each))}
                self.assertTrue(matching, f"{name}: no {label} is {value}")
        return {label for labels in selected for label in labels}

    def test_dashboard(self) -> None:
        """Every metric, label and value of the dashboard exists, and so do the labels in its legends."""
        for _, expression, text in self.queries():
            self.check(expression, text)

    def test_alerts(self) -> None:
        """So do those of the alerts."""
        for rule in self.rules:
            self.check(rule["expr"], rule["annotations"]["summary"])

    def test_checks(self) -> None:
        """The check finds a metric, a label, a value, a label to group by and one in a legend that do not exist."""
        for expression, text in (
            ("owsla_linez", ""),
            ("rate(owsla_linez_total[5m])", ""),
            ('{__name__=~"owsla_linez.*"}', ""),
            ('owsla_connections{dor="x"}', ""),
            ('owsla_connections{state="opened"}', ""),
            ('owsla_undeliverable_total{reason=~"evil-.*"}', ""),
            ("sum by (dor) (owsla_connections)", ""),
            ("owsla_connections / on (dor) owsla_connections_limit", ""),
            ("owsla_connections", "{{dor}}"),
            ("owsla_connections", "{{ $labels.dor }}"),
        ):
            self.assertRaises(self.failureException, self.check, expression, text)


class PageTests(Monitoring):
    """The alerts in monitoring.md."""

    def test_table(self) -> None:
        """The table of alerts has each rule of the file, with its severity, its delay and its description."""
        section = (_ROOT / "docs" / "monitoring.md").read_text().split("## Alerts\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| (`Owsla.*) \|$", section, re.M)
        expected = [
            f"`{rule['alert']}` | {rule['labels']['severity']} | {rule.get('for', '-')} | {rule['annotations']['description']}"
            for rule in self.rules
        ]
        self.assertEqual(rows, expected)

    def test_complete(self) -> None:
        """Each rule says in a sentence what it is about, and in others what to do."""
        for rule in self.rules:
            self.assertIn("{{ $labels.instance }}", rule["annotations"]["summary"], rule["alert"])
            self.assertTrue(rule["annotations"]["description"].endswith("."), rule["alert"])
            self.assertIn(rule["labels"]["severity"], ("critical", "warning"))


class DashboardTests(Monitoring):
    """The dashboard as a whole."""

    def test_panels(self) -> None:
        """Each panel has a title of its own, says what to do, has a unit, and takes the data source of the variable."""
        titles = [panel["title"] for panel in self.panels]
        self.assertEqual(sorted(titles), sorted(set(titles)))
        for panel in self.panels:
            self.assertTrue(panel["description"].endswith("."), panel["title"])
            self.assertGreater(len(panel["description"]), 25, panel["title"])
            if panel["type"] == "heatmap":
                self.assertTrue(panel["options"]["yAxis"]["unit"])
            else:
                self.assertTrue(panel["fieldConfig"]["defaults"]["unit"], panel["title"])
            for holder in (panel, *panel["targets"]):
                self.assertEqual(holder["datasource"], {"type": "prometheus", "uid": "${datasource}"}, panel["title"])
            references = [target["refId"] for target in panel["targets"]]
            self.assertEqual(len(references), len(set(references)), panel["title"])

    def test_variables(self) -> None:
        """Data source, instance, worker and door can be chosen, and each is used. Without workers, all is shown."""
        variables = {each["name"]: each for each in self.dashboard["templating"]["list"]}
        self.assertEqual(list(variables), ["datasource", "instance", "worker", "door"])
        expressions = [expression for _, expression, _ in self.queries()]
        for name in ("instance", "worker", "door"):
            self.assertTrue(any(f'{name}=~"${name}"' in each for each in expressions))
            self.assertEqual(variables[name]["allValue"], ".*")
        for title, expression, _ in self.queries():
            if title not in ("instance",):
                self.assertIn('instance=~"$instance"', expression, title)

    def test_places(self) -> None:
        """Panels have ids of their own, and none covers another."""
        ids = [panel["id"] for panel in self.dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        taken: set[tuple[int, int]] = set()
        for panel in self.dashboard["panels"]:
            place = panel["gridPos"]
            cells = {
                (place["x"] + column, place["y"] + line) for column in range(place["w"]) for line in range(place["h"])
            }
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            self.assertFalse(cells & taken, panel["title"])
            taken |= cells


class PromtoolTests(Monitoring):
    """What Prometheus says of the files."""

    def setUp(self) -> None:
        super().setUp()
        if shutil.which("promtool") is None:
            if _REQUIRED:
                self.fail("OWSLA_REQUIRE_PROMTOOL=1, and promtool is not installed")
            raise SkipTest("needs promtool, of Debian's package prometheus")

    def promtool(self, *arguments: str) -> None:
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_rules(self) -> None:
        """Prometheus accepts the rules, and they fire when they should."""
        self.promtool("check", "rules", str(_RULES))
        self.promtool("test", "rules", str(Path(__file__).with_name("alerts_test.yaml")))

    def test_dashboard(self) -> None:
        """Prometheus can parse every expression of the dashboard."""
        rules = []
        for number, (_, expression, _) in enumerate(self.queries()):
            parsed = expression.replace("$__rate_interval", "1m")
            parsed = re.sub(r"\$(instance|worker|door)", ".*", parsed)
            self.assertNotIn("$", parsed)
            rules.append({"record": f"test:query:{number}", "expr": parsed})
        with TemporaryDirectory() as folder:
            file = Path(folder) / "rules.yaml"
            file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
            self.promtool("check", "rules", str(file))
