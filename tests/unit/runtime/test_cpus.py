"""CPUs that a process may use: contents of /proc and of control groups, as they were seen on real machines."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime import cpus
from owsla.runtime.cpus import Cpus, cpu_quota, usable_cpus

#: /proc/self/mountinfo of a container with version 2: the namespace hides the path on the host.
V2 = """\
612 606 0:51 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
616 615 0:29 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot
"""

#: The same of a container with version 1 that has no namespace of control groups: root and path are those of the host.
V1 = """\
1432 1431 0:64 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755,inode64
1435 1432 0:30 /docker/5aa1 /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec,relatime master:14 - cgroup cgroup rw,cpu,cpuacct
1436 1432 0:31 /docker/5aa1 /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:15 - cgroup cgroup rw,memory
1438 1432 0:33 /docker/5aa1 /sys/fs/cgroup/cpuset ro,nosuid,nodev,noexec,relatime master:17 - cgroup cgroup rw,cpuset
"""
V1_PATHS = "9:memory:/docker/5aa1\n5:cpu,cpuacct:/docker/5aa1\n3:cpuset:/docker/5aa1\n1:name=systemd:/docker/5aa1\n"

#: The same of a machine with both: version 2 without controllers, and version 1.
HYBRID = """\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


class QuotaTests(SynchronousTestCase):
    def quota(self, cgroup: str, mountinfo: str, files: Mapping[str, str]) -> float | None:
        """Return the quota in a tree of these files, below /sys/fs/cgroup."""
        root = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, root)
        tree = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo}
        for name, text in {**tree, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return cpu_quota(root)

    def test_version_2(self) -> None:
        """`docker run --cpus=1.5`: the namespace shows the group of the container as the root."""
        self.assertEqual(self.quota("0::/\n", V2, {"cpu.max": "150000 100000\n"}), 1.5)

    def test_version_2_without_a_limit(self) -> None:
        """A group without a quota has the word `max`."""
        self.assertIsNone(self.quota("0::/\n", V2, {"cpu.max": "max 100000\n"}))

    def test_smallest_on_the_path(self) -> None:
        """Of nested groups the smallest quota counts, wherever it is on the path; groups beside the path do not."""
        files = {
            "system.slice/cpu.max": "300000 100000\n",
            "system.slice/owsla.service/cpu.max": "max 100000\n",
            "system.slice/owsla.service/in/cpu.max": "250000 50000\n",
            "system.slice/other.service/cpu.max": "10000 100000\n",
        }
        self.assertEqual(self.quota("0::/system.slice/owsla.service/in\n", V2, files), 3.0)
        files["system.slice/owsla.service/in/cpu.max"] = "50000 100000\n"
        self.assertEqual(self.quota("0::/system.slice/owsla.service/in\n", V2, files), 0.5)

    def test_version_1(self) -> None:
        """`docker run --cpus=2.5` with version 1: the path of the host is the root of what is mounted."""
        files = {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
        self.assertEqual(self.quota(V1_PATHS, V1, files), 2.5)

    def test_version_1_without_a_limit(self) -> None:
        """-1 is no quota."""
        files = {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
        self.assertIsNone(self.quota(V1_PATHS, V1, files))

    def test_hybrid(self) -> None:
        """With both versions the controller is in one of them."""
        files = {
            "cpu/kubepods/cpu.cfs_quota_us": "400000\n",
            "cpu/kubepods/cpu.cfs_period_us": "100000\n",
            "cpu/kubepods/pod1/cpu.cfs_quota_us": "100000\n",
            "cpu/kubepods/pod1/cpu.cfs_period_us": "100000\n",
            "unified/cgroup.controllers": "hugetlb\n",
        }
        self.assertEqual(self.quota("1:cpu:/kubepods/pod1\n0::/user.slice\n", HYBRID, files), 1.0)

    def test_group_that_cannot_be_seen(self) -> None:
        """A process outside the mounted part of the hierarchy, or outside its namespace, has the quota of what it sees."""
        files = {"cpu.max": "100000 100000\n"}
        self.assertEqual(self.quota("0::/../../other\n", V2, files), 1.0)
        below = V2.replace("0:29 / ", "0:29 /machine.slice ")
        self.assertEqual(self.quota("0::/user.slice\n", below, files), 1.0)

    def test_mount_point_with_a_space(self) -> None:
        """The kernel writes a space of a path as an octal number."""
        mountinfo = V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/v\0402")
        self.assertEqual(self.quota("0::/a:b\n", mountinfo, {"v 2/a:b/cpu.max": "200000 100000\n"}), 2.0)

    def test_odd_mount_points(self) -> None:
        """A form feed or a carriage return in the path of another mount ends no line."""
        for odd in ("a\fb", "a\rb", "a\u2028b"):
            mountinfo = f"99 31 0:99 / /{odd} rw - tmpfs none rw\n{V2}"
            self.assertEqual(self.quota("0::/\n", mountinfo, {"cpu.max": "150000 100000\n"}), 1.5)

    def test_nothing_to_read(self) -> None:
        """Without control groups, their files, or /proc there is no limit; neither for contents that nobody knows."""
        self.assertIsNone(self.quota("0::/\n", V2, {}))
        self.assertIsNone(self.quota("", "", {}))
        self.assertIsNone(self.quota("0::/\n", "612 606 0:51 / /proc rw - proc proc rw\n", {"cpu.max": "100000 100000\n"}))
        for text in ("", "\n", "many 100000\n", "100000 0\n", "100000\n"):
            self.assertIsNone(self.quota("0::/\n", V2, {"cpu.max": text}), text)
        self.assertIsNone(cpu_quota(Path("/nowhere")))


class WorkersTests(SynchronousTestCase):
    def test_rounding(self) -> None:
        """A quota is rounded to the nearest number, half of a CPU up, to one at least, and to the usable CPUs at most."""
        for quota, workers in ((0.1, 1), (1.0, 1), (1.4, 1), (1.5, 2), (2.49, 2), (2.5, 3), (3.9, 4), (16.0, 4), (None, 4)):
            self.assertEqual(Cpus(4, quota).workers, workers, quota)
        self.assertEqual(Cpus(1024).workers, 256)

    def test_description(self) -> None:
        """The log says how many workers there are, and why."""
        for some, line in (
            (Cpus(4), "--workers auto: 4 workers, because this process may run on 4 CPUs"),
            (Cpus(1), "--workers auto: one process, because this process may run on 1 CPU"),
            (Cpus(4, 8.0), "--workers auto: 4 workers, because this process may run on 4 CPUs"),
            (Cpus(9, 1.5), "--workers auto: 2 workers, because a quota of the control group allows the time of 1.5 of 9 CPUs"),
            (Cpus(2, 0), "--workers auto: one process, because a quota of the control group allows the time of 0 of 2 CPUs"),
        ):
            self.assertEqual(some.describe(), line)

    def test_affinity(self) -> None:
        """CPUs that the process may not run on do not count (`taskset`, `docker run --cpuset-cpus`)."""
        self.patch(os, "sched_getaffinity", lambda pid: {3, 5, 6})
        self.patch(cpus, "process_cpu_count", None)
        self.assertEqual(usable_cpus().usable, 3)

    def test_python_cpu_count(self) -> None:
        """From Python 3.13 on, Python's own count is used, which PYTHON_CPU_COUNT and -X cpu_count override."""
        self.patch(cpus, "process_cpu_count", lambda: 7)
        self.assertEqual(usable_cpus().usable, 7)
