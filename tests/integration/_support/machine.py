"""A machine for packages: the files of a folder, systemd as process 1, and namespaces of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from .process import ChildProcess
from .systemd import REMOVE_GROUP
from .waiting import until

_OUTSIDE: Final = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/cgroup
mount -t cgroup2 none /run/cgroup
mkdir -p "/run/cgroup/$1"
echo 0 >"/run/cgroup/$1/cgroup.procs"
umount /run/cgroup
exec unshare --cgroup sh -euc "$2" sh "$3" "$4" "$5" "$6"
"""
"""Script that joins a control group of its own. The control group namespace begins there: systemd would otherwise
reorganize all groups of this machine."""

_INSIDE: Final = """
ip link set lo up 2>/dev/null || true
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o bind,remount,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# As on a machine of its own: nothing keeps services from starting.
rm -f usr/sbin/policy-rc.d
mkdir -p srv/packages .old
mount --bind "$3" srv/packages
pivot_root . .old
umount -l /.old
rmdir /.old
exec env -i container=owsla PATH=/usr/sbin:/usr/bin:/sbin:/bin $4
"""
"""Script that makes the machine, in memory over the files of a folder, and becomes its first process. Its network has nothing
but a loopback interface."""


class Machine:
    """A machine with the files of `root`, to which its changes are lost at the end. `/srv/packages` is the folder `packages`.

    To make it takes root. Nothing of this machine is changed or can be reached, but its devices that hold no state.
    """

    def __init__(self, root: Path, folder: Path, packages: Path) -> None:
        folder.mkdir()
        (folder / "files").mkdir()
        self._root = root
        self._folder = folder
        self._packages = packages
        self._group = f"owsla-machine-{os.getpid()}"
        self._process: ChildProcess | None = None

    @staticmethod
    def missing(root: Path) -> str:
        """Return why there can be no machine with these files; an empty text if there can."""
        if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("nsenter")):
            return "a machine of its own takes root and util-linux"
        if not (root / "usr/bin/systemctl").exists() or not (root / "lib/systemd/systemd").exists():
            return f"systemd is not installed in {root}"
        tried = subprocess.run(
            ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--mount-proc", "sh", "-euc",
             'mount -t tmpfs tmpfs /mnt; mkdir /mnt/1 /mnt/2 /mnt/3; mount -t cgroup2 none /mnt/3;'
             'mount -t overlay overlay -o "lowerdir=$0,upperdir=/mnt/1,workdir=/mnt/2" /mnt/3', str(root)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return "" if tried.returncode == 0 else f"no namespaces or no overlay: {tried.stderr.strip()}"

    async def start(self, *, systemd: bool = True) -> None:
        """Start the machine, and wait until it answers. Without systemd it is like a chroot."""
        first = "/lib/systemd/systemd --system --unit=basic.target" if systemd else "sleep infinity"
        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--net"]
        arguments = [self._group, _INSIDE, str(self._root), str(self._folder / "files"), str(self._packages), first]
        self._process = ChildProcess(
            ["unshare", *namespaces, "--fork", "--kill-child", "--mount-proc", "sh", "-c", _OUTSIDE, "sh", *arguments],
            output=self._folder / "output",
        )
        await until(self._is_up if systemd else self._has_files, 60, self.output)

    def _has_files(self) -> bool:
        return self.try_run("test -d /srv/packages -a ! -d /.old").returncode == 0

    def _is_up(self) -> bool:
        return self._has_files() and self.try_run("systemctl is-system-running").stdout.strip() in ("running", "degraded")

    def output(self) -> str:
        """Return what the first process has written."""
        return (self._folder / "output").read_text()

    def try_run(self, script: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a shell script in the machine, as root."""
        assert self._process is not None
        child = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not child:
            return subprocess.CompletedProcess([], 1, "", "not started")
        env = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
        return subprocess.run(
            ["nsenter", "--target", child[0], "--all", "--", *env, "sh", "-euc", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def run(self, script: str) -> str:
        """Run a shell script in the machine, which must succeed. Return what it writes."""
        done = self.try_run(script)
        assert done.returncode == 0, f"{script}: status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    async def close(self) -> None:
        """End everything in the machine at once, and remove its control group."""
        if self._process is not None:
            self._process.kill()
        await until(lambda: self._removed(), what="the end of the machine")

    def _removed(self) -> bool:
        command = ["unshare", "--mount", "sh", "-c", REMOVE_GROUP, "sh", self._group]
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
