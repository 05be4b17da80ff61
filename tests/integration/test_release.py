"""Tests of a release: the sdist and the wheel, built as CONTRIBUTING.md says, except without isolation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

from owsla import __version__

_ROOT: Final = Path(__file__).parents[2]


def _files() -> list[str]:
    """Return the names of the files of this checkout, or of this unpacked sdist."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=_ROOT, capture_output=True, text=True, check=False,
    ) if shutil.which("git") and (_ROOT / ".git").exists() else None  # fmt: skip
    if listed is not None and listed.returncode == 0:
        names = listed.stdout.split("\0")
    else:
        pathspec = pytest.importorskip("pathspec")
        ignored = pathspec.GitIgnoreSpec.from_lines((_ROOT / ".gitignore").read_text().splitlines())
        names = [name for name in ignored.match_tree_files(_ROOT, negate=True) if not name.startswith(".git/")]
    return sorted(name for name in names if name and (_ROOT / name).is_file() and name != "PKG-INFO")


def _copy(folder: Path, mask: int) -> Path:
    """Copy the files into a folder, with the permissions that a checkout under this umask has."""
    for name in _files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_ROOT / name, target)
        target.chmod((0o777 if os.access(_ROOT / name, os.X_OK) else 0o666) & ~mask)
    return folder


def _build(folder: Path, *options: str, **env: str) -> None:
    """Run `python -m build` in a folder; its `dist` has the results."""
    clean = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-m", "build", "--no-isolation", *options]
    ended = subprocess.run(command, cwd=folder, env=clean | env, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "dist").iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a copy of the checkout in which the sdist, and from it the wheel, was built."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = _copy(tmp_path_factory.mktemp("release") / "one", 0o022)
    _build(folder)
    yield folder
    shutil.rmtree(folder)


def test_reproducible(built: Path, tmp_path: Path) -> None:
    """Whoever builds a release gets the same bytes, and a wheel from the sdist is the one from the checkout.

    The folder, the umask, the time of the files, the time zone, the locale and the order of hashes differ.
    """
    other = _copy(tmp_path / "the other", 0o077)
    for path in other.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    mask = os.umask(0o077)
    try:
        env = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
        _build(other, "--sdist", **env)
        _build(other, "--wheel", **env)
    finally:
        os.umask(mask)
    assert _hashes(other) == _hashes(built)
    assert list(_hashes(built)) == [f"owsla-{__version__}-py3-none-any.whl", f"owsla-{__version__}.tar.gz"]


def test_metadata(built: Path) -> None:
    """The metadata are valid, name the licence, and the description can be shown by a package index."""
    pytest.importorskip("twine")
    packages = sorted((built / "dist").iterdir())
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, packages)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with zipfile.ZipFile(packages[0]) as wheel:
        info = f"owsla-{__version__}.dist-info"
        metadata = wheel.read(f"{info}/METADATA").decode()
        assert wheel.read(f"{info}/licenses/LICENSE") == (_ROOT / "LICENSE").read_bytes()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata


def test_sdist(built: Path) -> None:
    """The sdist has every file of the checkout but the tools for changes to it, whose names begin with a dot (`.ci`). The build
    of the image needs `.dockerignore`.
    """
    with tarfile.open(built / "dist" / f"owsla-{__version__}.tar.gz") as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    assert packed == {name for name in _files() if not name.startswith(".")} | {".dockerignore", ".gitignore", "PKG-INFO"}


def test_wheel(built: Path) -> None:
    """The wheel has the package, the plug-ins, the manual pages and its metadata, and nothing else."""
    with zipfile.ZipFile(built / "dist" / f"owsla-{__version__}-py3-none-any.whl") as wheel:
        packed = {name for name in wheel.namelist() if not name.startswith(f"owsla-{__version__}.dist-info/")}
        commands = wheel.read(f"owsla-{__version__}.dist-info/entry_points.txt").decode()
    data = f"owsla-{__version__}.data/data/share/man"
    expected = {name for name in _files() if name.startswith(("owsla/", "twisted/plugins/"))}
    assert re.findall("^(.*) = ", commands, re.MULTILINE) == ["owsla", "twistd-owsla"]
    assert packed == expected | {f"{data}/man1/owsla.1", f"{data}/man8/twistd-owsla.8"}


def test_tests_of_sdist(built: Path, tmp_path: Path) -> None:
    """Tests that read the documentation pass in an unpacked sdist."""
    with tarfile.open(built / "dist" / f"owsla-{__version__}.tar.gz") as sdist:
        sdist.extractall(tmp_path, filter="data")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_documentation.py"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    folder = tmp_path / f"owsla-{__version__}"
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
