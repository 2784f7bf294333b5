"""Clusters for tests: one that is this process, and a real one of small nodes; and what runs on them must have in common."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

from peft_noah.run.cluster import Event

STORE = 80 * 1024**2
#: a dead node is missed within seconds
WATCHFUL = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


class Here:
    """A cluster of this process alone, which does a piece when it is asked what happened."""

    def __init__(self):
        self.waiting, self.begun, self.mapped = [], None, 0

    @contextmanager
    def connected(self):
        yield self

    def __bool__(self):
        return bool(self.waiting or self.begun)

    def submit(self, *piece):
        self.waiting.append(piece)

    def map(self, function, data):
        self.mapped += len(data)
        return list(map(function, data))

    def next(self):
        if self.begun is None:
            self.begun = self.waiting.pop()  # the last first: no order is promised
            return Event(self.begun[0], node="here")
        (key, function, data), self.begun = self.begun, None
        try:
            return Event(key, value=function(data))
        except ValueError as error:
            return Event(key, error=error)


def without_times(path: Path) -> object:
    """What a file of a run says, but for how long it took, how much memory, and where in the code it broke."""
    if path.suffix != ".json":
        return path.read_bytes()
    data = json.loads(path.read_text())
    for name in ("notes", "traceback"):
        data.pop(name, None)
    for result in data.get("results", []):
        result.pop("seconds")
    return data


def assert_same_runs(folder: Path, other: Path) -> None:
    """What the runs below one folder have left is below the other as well, equal to the byte but for times.

    What a killed process was just writing is left as a hidden ``.tmp`` beside the file.
    """
    timed = ("stages.json", "results.md", "results.json", "log.jsonl")
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    found = [path for path in found if path.name not in timed and path.suffix not in (".jsonl", ".lock", ".tmp")]
    assert found
    for path in found:
        assert without_times(folder / path) == without_times(other / path), path


class RayNodes:
    """A Ray cluster on this machine: a head that takes no work, and nodes that come and go."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": 0,
            "include_dashboard": False,
            "no_monitor": True,
            "object_store_memory": STORE,
            "_system_config": WATCHFUL,
        }
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes, self.address = {}, self._cluster.address

    def add(self, cpus: int = 1, gpus: int = 0) -> None:
        """A node more; its GPUs need not be there."""
        node = self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE)
        self._nodes[node.node_id] = node

    def kill(self, name: str) -> None:
        """End the node of an id as a power cut would."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()
