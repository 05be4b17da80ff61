"""The files of packaging/container: they fit each other, the options of Owsla, and the programs that read them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest import SkipTest

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._arguments import parse
from owsla.config.options import BY_NAME, BY_VARIABLE
from owsla.runtime.early_signals import ENDING, IGNORED
from tests import is_required

_ROOT: Final = Path(__file__).parents[3]
_FOLDER: Final = _ROOT / "packaging" / "container"
_PROMTOOL_REQUIRED: Final = is_required("PROMTOOL")

_EXIT: Final = 10
"""Seconds that a gateway may need beyond --drain-timeout, for workers that have to be killed."""


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Containerfile, with their arguments on one line."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, arguments = line.partition(" ")
            yield name, arguments.strip()


def seconds(text: str) -> float:
    """Return a time of the composition in seconds."""
    return float(text.removesuffix("s"))


def check_command(arguments: list[str]) -> None:
    """Fail if `owsla` does not know these arguments."""
    parse(arguments, {})


class ImageTests(SynchronousTestCase):
    """The Containerfile, and what goes into the image."""

    def setUp(self) -> None:
        self.project: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text())
        every = list(instructions(_FOLDER / "Containerfile"))
        last = max(number for number, (name, _) in enumerate(every) if name == "FROM")
        self.every = every
        self.image = every[last:]

    def one(self, name: str) -> str:
        """Return the arguments of an instruction that the last stage has once."""
        [arguments] = [arguments for each, arguments in self.image if each == name]
        return arguments

    def test_program(self) -> None:
        """The image runs a program of the package, without a shell, and so does its health check."""
        *launcher, program = json.loads(self.one("ENTRYPOINT"))
        self.assertIn(program, self.project["project"]["scripts"])
        blocked = {f"--block-signal={number.name.removeprefix('SIG')}" for number in (*IGNORED, *ENDING)}
        self.assertEqual((launcher[0], set(launcher[1:])), ("env", blocked))
        check, *arguments = json.loads(self.one("HEALTHCHECK").partition(" CMD ")[2])
        self.assertEqual(check, "owsla")
        check_command(arguments)

    def test_environment(self) -> None:
        """The settings file is where the image looks for it, and no variable would override it."""
        variables = dict(re.findall(r"(\w+)=(\S+)", self.one("ENV")))
        owslas = {name for name in variables if name.startswith("OWSLA_")}
        self.assertEqual(owslas, {"OWSLA_CONFIG"})
        copies = [arguments.split() for name, arguments in self.image if name == "COPY"]
        self.assertIn(["packaging/container/owsla.toml", variables["OWSLA_CONFIG"]], copies)
        self.assertTrue(variables["PATH"].startswith("/usr/lib/owsla/bin:"))

    def test_folder(self) -> None:
        """The working folder, in which the control socket is, is the volume, and the home of the user with the number 10001."""
        self.assertEqual((self.one("WORKDIR"), self.one("VOLUME")), ("/var/lib/owsla", "/var/lib/owsla"))
        self.assertEqual(self.one("USER"), "10001:0")
        self.assertIn("owsla:x:10001:0:Owsla:/var/lib/owsla:", self.one("RUN"))

    def test_settings(self) -> None:
        """The settings of the image are options, and its ports are those of the settings and of the defaults."""
        settings = tomllib.loads((_FOLDER / "owsla.toml").read_text())
        for name, value in settings.items():
            BY_NAME[name].read(str(value))
        ports = {BY_NAME["port"].default_text, settings["http"].rpartition(":")[2]}
        self.assertEqual(set(self.one("EXPOSE").split()), ports)

    def test_context(self) -> None:
        """The builder gets each file that the Containerfile copies and that the wheel is made of; no secret, and no cache."""
        hatch = self.project["tool"]["hatch"]["build"]["targets"]["wheel"]
        project = self.project["project"]
        needed = ["pyproject.toml", project["readme"], *project["license-files"], *hatch["only-include"], *hatch["shared-data"]]
        for name, arguments in self.every:
            if name == "COPY" and "--from" not in arguments:
                needed += [source for source in arguments.split()[:-1] if source != "."]
        for source in needed:
            self.assertTrue((_ROOT / source).exists(), source)
            self.assertTrue(sent(source), source)
        for other in (".git/config", ".venv/bin/python", "packaging/container/compose/secrets/http-token", "docs/options.md",
                      "owsla/__pycache__/tap.pyc", "certs/ca.key", "owsla.sock"):  # fmt: skip
            self.assertFalse(sent(other), other)


def sent(path: str) -> bool:
    """Return whether the builder gets a file: the last matching line of .dockerignore decides."""
    result = True
    for line in (_ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = path.split("/")
        parents = ["/".join(parts[: number + 1]) for number in range(len(parts))]
        names = parts if pattern.startswith("**/") else parents
        if any(fnmatchcase(each, pattern.removeprefix("**/")) for each in names):
            result = line.startswith("!")
    return result


class RequirementsTests(SynchronousTestCase):
    """The versions of the packages in the image."""

    def test_versions(self) -> None:
        """Each dependency of the project has a version that the project accepts, and each package has a hash."""
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())
        image = (_FOLDER / "requirements.in").read_text().splitlines()
        build = (_FOLDER / "build-requirements.in").read_text().splitlines()
        for wanted, file in (
            ([*project["project"]["dependencies"], *image], "requirements.txt"),
            ([*project["build-system"]["requires"], *build], "build-requirements.txt"),
        ):
            pinned = {}
            for line in re.sub(r"\\\n\s*", "", (_FOLDER / file).read_text()).splitlines():
                if not line.startswith("#"):
                    text, *hashes = line.split("--hash=")
                    self.assertTrue(hashes, line)
                    requirement = Requirement(text)
                    [version] = requirement.specifier
                    self.assertEqual(version.operator, "==")
                    pinned[canonicalize_name(requirement.name)] = version.version
            for text in wanted:
                if text := text.partition("#")[0].strip():
                    requirement = Requirement(text)
                    found = pinned[canonicalize_name(requirement.name)]
                    self.assertTrue(requirement.specifier.contains(found), f"{text}: {found}; run packaging/container/lock")


class CompositionTests(SynchronousTestCase):
    """compose.yaml."""

    def setUp(self) -> None:
        self.text = (_FOLDER / "compose.yaml").read_text()
        self.composition: dict[str, Any] = yaml.safe_load(self.text)
        self.services: dict[str, Any] = self.composition["services"]
        self.settings = tomllib.loads((_FOLDER / "compose" / "owsla" / "owsla.toml").read_text())

    def mounts(self, service: str) -> dict[str, str]:
        """Return the sources of the mounts of a service by their target."""
        parts = [mount.split(":") for mount in self.services[service].get("volumes", ())]
        return {target: source for source, target, *_ in parts}

    def test_names(self) -> None:
        """Each file, volume, secret and service that a service names is there, and each is named."""
        volumes, secrets = set(), set()
        for name, service in self.services.items():
            for source in self.mounts(name).values():
                if source.startswith("."):
                    self.assertTrue((_FOLDER / source).exists(), source)
                else:
                    volumes.add(source)
            secrets |= set(service.get("secrets", ()))
            for other, condition in service.get("depends_on", {}).items():
                if condition["condition"] == "service_healthy":
                    self.assertIn("test", self.services[other]["healthcheck"])
        self.assertEqual(volumes, set(self.composition["volumes"]))
        self.assertEqual(secrets, set(self.composition["secrets"]))
        for service in ("owsla", "echo"):
            build = self.services[service]["build"]
            self.assertTrue((_FOLDER / build["context"] / build["dockerfile"]).exists())

    def test_settings(self) -> None:
        """The settings of the gateway are options; the files that they name are secrets of it; the ports are published."""
        for name, value in self.settings.items():
            BY_NAME[name].read(str(value))
        named = {value for value in self.settings.values() if isinstance(value, str) and value.startswith("/")}
        self.assertEqual(named, {f"/run/secrets/{secret}" for secret in self.services["owsla"]["secrets"]})
        environment = self.services["echo"]["environment"]
        self.assertLessEqual(set(environment), set(BY_VARIABLE))
        self.assertIn(environment["OWSLA_BROKER_PASSWORD_FILE"].rpartition("/")[2], self.services["echo"]["secrets"])
        inside = {port.rpartition(":")[2] for port in self.services["owsla"]["ports"]}
        self.assertEqual(inside, {BY_NAME["port"].default_text, self.settings["http"].rpartition(":")[2]})

    def test_stop(self) -> None:
        """The gateway has time for its drain."""
        drain = float(str(BY_NAME["drain-timeout"].read(self.settings["drain-timeout"])))
        self.assertGreaterEqual(seconds(self.services["owsla"]["stop_grace_period"]), drain + _EXIT)

    def test_commands(self) -> None:
        """The commands of the package are ones that it has. A back end is no gateway, so it has no health check."""
        program, *arguments = self.services["owsla"]["healthcheck"]["test"][1:]
        self.assertEqual(program, "owsla")
        check_command(arguments)
        self.assertEqual(self.services["echo"]["entrypoint"], ["owsla", "echo"])
        self.assertEqual(self.services["echo"]["healthcheck"], {"disable": True})

    def test_confined(self) -> None:
        """The containers of the image have a read-only file system and no capabilities. Only devices come from other hosts."""
        for name in ("owsla", "echo", "prometheus"):
            self.assertIs(self.services[name]["read_only"], True)
        for name in ("owsla", "echo", "prometheus", "grafana"):
            self.assertEqual(self.services[name]["cap_drop"], ["ALL"])
        ports = [port for service in self.services.values() for port in service.get("ports", ())]
        self.assertEqual([port for port in ports if not port.startswith("127.0.0.1:")], ["8883:8883"])

    def test_no_passwords(self) -> None:
        """No password is in the file: variables and addresses name files."""
        self.assertNotRegex(self.text, r"://[^/\s]*:[^/\s]*@")
        for service in self.services.values():
            for name, value in service.get("environment", {}).items():
                if re.search("PASSWORD|TOKEN|SECRET", name):
                    self.assertTrue(value.startswith("/run/secrets/"), name)


class SecretsTests(SynchronousTestCase):
    """compose/make-secrets."""

    def setUp(self) -> None:
        if shutil.which("openssl") is None:
            raise SkipTest("openssl is not installed")
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.secrets = self.folder / "secrets"
        shutil.copy(_FOLDER / "compose" / "make-secrets", self.folder)
        self.make()

    def make(self) -> None:
        subprocess.run([self.folder / "make-secrets"], check=True, timeout=60, umask=0o077)

    def contents(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.secrets.iterdir()}

    def test_files(self) -> None:
        """It makes each secret of the composition, in a folder that only the user can enter; containers can read the files."""
        wanted = yaml.safe_load((_FOLDER / "compose.yaml").read_text())["secrets"]
        for name, source in wanted.items():
            self.assertEqual(source, {"file": f"./compose/secrets/{name}"})
        self.assertEqual(set(self.contents()), {*wanted, "admin-password"})
        self.assertEqual(self.secrets.stat().st_mode & 0o777, 0o700)
        for path in self.secrets.iterdir():
            self.assertEqual(path.stat().st_mode & 0o777, 0o644)
        lines = [text for name, text in self.contents().items() if name != "definitions.json"]
        self.assertEqual(len(lines), len(set(lines)))
        for line in lines:
            self.assertRegex(line, r"\A[0-9a-f]{48}\n\Z")

    def test_again(self) -> None:
        """A second run changes nothing, and makes what is missing."""
        before = self.contents()
        self.make()
        self.assertEqual(self.contents(), before)
        (self.secrets / "http-token").unlink()
        self.make()
        after = self.contents()
        self.assertNotEqual(after.pop("http-token"), before.pop("http-token"))
        self.assertEqual(after, before)

    def test_hashes(self) -> None:
        """The hashes are those of the passwords: a salt of four bytes, and SHA-256 of the salt and the password."""
        definitions = json.loads(self.contents()["definitions.json"])
        self.assertEqual([user["name"] for user in definitions["users"]], ["owsla", "backend", "admin"])
        for user in definitions["users"]:
            decoded = base64.b64decode(user["password_hash"])
            password = (self.secrets / f"{user['name']}-password").read_bytes().rstrip()
            self.assertEqual(decoded[4:], hashlib.sha256(decoded[:4] + password).digest())


class MonitoringTests(SynchronousTestCase):
    """Prometheus and Grafana."""

    def setUp(self) -> None:
        self.composition = yaml.safe_load((_FOLDER / "compose.yaml").read_text())
        self.prometheus = yaml.safe_load((_FOLDER / "compose" / "prometheus.yml").read_text())

    def mounts(self, service: str) -> dict[str, Path]:
        """Return the files of a service by their path in the container."""
        parts = [mount.split(":") for mount in self.composition["services"][service]["volumes"]]
        return {target: (_FOLDER / source).resolve() for source, target, *_ in parts if source.startswith(".")}

    def test_prometheus(self) -> None:
        """Prometheus accepts its settings with the alerts."""
        if shutil.which("promtool") is None:
            if _PROMTOOL_REQUIRED:
                self.fail("OWSLA_REQUIRE_PROMTOOL=1, and promtool is not installed")
            raise SkipTest("needs promtool, of Debian's package prometheus")
        with TemporaryDirectory() as folder:
            for target, source in self.mounts("prometheus").items():
                shutil.copy(source, Path(folder) / Path(target).name)
            command = ["promtool", "check", "config", str(Path(folder) / "prometheus.yml")]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertIn("1 rule files found", ended.stdout)

    def test_targets(self) -> None:
        """Prometheus asks the gateway at the port of its settings, under the name that the alerts expect."""
        jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in self.prometheus["scrape_configs"]}
        port = tomllib.loads((_FOLDER / "compose" / "owsla" / "owsla.toml").read_text())["http"].rpartition(":")[2]
        self.assertEqual(jobs, {"owsla": [f"owsla:{port}"], "rabbitmq": ["rabbitmq:15692"]})

    def test_grafana(self) -> None:
        """Grafana gets Prometheus as data source, and the dashboard in the folder where it looks for some."""
        files = self.mounts("grafana")
        provisioning = "/etc/grafana/provisioning"
        [source] = yaml.safe_load(files[f"{provisioning}/datasources/owsla.yaml"].read_text())["datasources"]
        self.assertEqual((source["type"], source["url"]), ("prometheus", "http://prometheus:9090"))
        [provider] = yaml.safe_load(files[f"{provisioning}/dashboards/owsla.yaml"].read_text())["providers"]
        dashboard = f"{provider['options']['path']}/owsla.json"
        self.assertIn("Owsla", json.loads(files[dashboard].read_text())["title"])
        environment = self.composition["services"]["grafana"]["environment"]
        self.assertEqual(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"], dashboard)
