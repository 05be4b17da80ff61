"""The manifests for Kubernetes: they fit the schemas of Kubernetes, the settings of Owsla and each other."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

import yaml
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.options import BY_NAME, OPTIONS

_FOLDER: Final = Path(__file__).parents[3] / "packaging" / "kubernetes"
_OLDEST: Final = "1.30.0"
"""First version of Kubernetes in which `preStop` has `sleep` without a feature gate."""


def documents(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects in a file."""
    yield from yaml.safe_load_all(path.read_text())


class Manifests(SynchronousTestCase):
    """Base class: the objects by kind, and the settings."""

    def setUp(self) -> None:
        paths = [path for path in sorted(_FOLDER.glob("*/*.yaml")) if path.name != "kustomization.yaml"]
        self.objects = [one for path in paths for one in documents(path)]
        self.deployment = self.one("Deployment")
        self.pod: dict[str, Any] = self.deployment["spec"]["template"]["spec"]
        [self.container] = self.pod["containers"]
        self.settings = tomllib.loads((_FOLDER / "base" / "owsla.toml").read_text())

    def one(self, kind: str, name: str = "owsla") -> dict[str, Any]:
        """Return the object of this kind and name."""
        [found] = [each for each in self.objects if each["kind"] == kind and each["metadata"]["name"] == name]
        return found


class SchemaTests(Manifests):
    def test_schemas(self) -> None:
        """All objects of Kubernetes itself fit its schemas of the oldest and the newest supported version, strictly."""
        if importlib.util.find_spec("kubernetes_validate") is None:
            raise SkipTest("kubernetes-validate, of the extra `dev`, is not installed")
        import kubernetes_validate

        for version in (_OLDEST, kubernetes_validate.latest_version()):
            for each in self.objects:
                if each["kind"] != "ServiceMonitor":  # of the Prometheus operator
                    kubernetes_validate.validate(each, version, strict=True)

    def test_kustomize(self) -> None:
        """kustomize builds the example from the base and the component, with its image, broker and namespace."""
        if shutil.which("kustomize") is None:
            raise SkipTest("kustomize is not installed")
        built = subprocess.run(
            ["kustomize", "build", _FOLDER / "example"], check=True, capture_output=True, text=True, timeout=60
        ).stdout
        objects = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(built)}
        self.assertEqual({each["metadata"]["namespace"] for each in objects.values()}, {"devices"})
        self.assertEqual(objects["ConfigMap", "owsla"]["data"]["owsla.toml"], (_FOLDER / "base" / "owsla.toml").read_text())
        [container] = objects["Deployment", "owsla"]["spec"]["template"]["spec"]["containers"]
        self.assertRegex(container["image"], r"\Aregistry\.example\.com/owsla:\d")
        self.assertIn("OWSLA_BROKER", {each["name"] for each in container["env"]})
        self.assertIn(("ServiceMonitor", "owsla"), objects)


class SettingsTests(Manifests):
    def test_options(self) -> None:
        """The settings are options of Owsla."""
        self.assertLessEqual(self.settings.keys(), {option.name for option in OPTIONS})

    def test_files(self) -> None:
        """Each file that the settings name is in the volume of the settings, which is mounted there."""
        [mount] = [each for each in self.container["volumeMounts"] if each["name"] == "settings"]
        [volume] = [each for each in self.pod["volumes"] if each["name"] == "settings"]
        sources = volume["projected"]["sources"]
        items = [item["path"] for source in sources if "secret" in source for item in source["secret"]["items"]]
        named = {value for value in self.settings.values() if isinstance(value, str) and value.startswith("/")}
        self.assertEqual(named, {f"{mount['mountPath']}/{item}" for item in items})
        self.assertEqual(volume["projected"]["defaultMode"], 0o440)
        self.assertEqual(self.pod["securityContext"]["fsGroup"], self.pod["securityContext"]["runAsGroup"])
        [config] = [each["value"] for each in self.container["env"] if each["name"] == "OWSLA_CONFIG"]
        self.assertEqual(config, f"{mount['mountPath']}/owsla.toml")

    def test_grace_period(self) -> None:
        """The pod has time for the hook and for the drain, and ten seconds more."""
        hook = self.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        spread, drain = (float(str(BY_NAME[name].read(self.settings[name]))) for name in ("drain-spread", "drain-timeout"))
        self.assertLess(spread, drain)
        self.assertGreaterEqual(self.pod["terminationGracePeriodSeconds"], hook + drain + 10)

    def test_memory(self) -> None:
        """The memory limit holds all connections at 24 KB each, and half as much again."""
        limit = self.container["resources"]["limits"]["memory"]
        self.assertEqual(limit, "1Gi")
        self.assertLess(self.settings["max-connections"] * 24_000 * 1.5, 1 << 30)


class ConsistencyTests(Manifests):
    def test_ports(self) -> None:
        """Services, probes and the monitor use ports of the container, which are those of the settings."""
        ports = {each["name"]: each["containerPort"] for each in self.container["ports"]}
        self.assertEqual(ports, {"devices": self.settings["port"], "http": int(self.settings["http"].partition(":")[2])})
        for name, port in (("owsla", "devices"), ("owsla-http", "http")):
            [offered] = self.one("Service", name)["spec"]["ports"]
            self.assertEqual((offered["targetPort"], offered["port"]), (port, ports[port]))
        for probe in ("livenessProbe", "readinessProbe"):
            self.assertEqual(self.container[probe]["httpGet"]["port"], "http")

    def test_selectors(self) -> None:
        """Deployment, budget, spread and services select the pods, and the monitor selects the service for metrics."""
        labels = self.deployment["spec"]["template"]["metadata"]["labels"]
        [spread] = self.pod["topologySpreadConstraints"]
        self.assertEqual(self.deployment["spec"]["selector"]["matchLabels"], labels)
        self.assertEqual(spread["labelSelector"]["matchLabels"], labels)
        self.assertEqual(self.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels)
        for name in ("owsla", "owsla-http"):
            self.assertEqual(self.one("Service", name)["spec"]["selector"], labels)
        monitor = self.one("ServiceMonitor")["spec"]
        service = self.one("Service", "owsla-http")
        self.assertEqual(monitor["selector"]["matchLabels"], service["metadata"]["labels"])
        self.assertEqual(service["metadata"]["labels"][monitor["jobLabel"]], "owsla")  # the job of the alerts
        self.assertEqual([each["port"] for each in monitor["endpoints"]], [each["name"] for each in service["spec"]["ports"]])

    def test_security(self) -> None:
        """The pod satisfies the Pod Security Standard "restricted", with a read-only root file system."""
        context = self.container["securityContext"]
        self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
        self.assertIs(context["allowPrivilegeEscalation"], False)
        self.assertIs(context["readOnlyRootFilesystem"], True)
        self.assertIs(self.pod["securityContext"]["runAsNonRoot"], True)
        self.assertEqual(self.pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertNotIn("hostPath", json.dumps(self.pod["volumes"]))
