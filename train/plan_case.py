"""Everything that a plan is made for, read from files: workload, topology, constraints; and whence.

A plan remembers its `Sources`, so that it can be asked about later with nothing but its file.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.dataio.config import did_you_mean, load_mapping, place_of, read_config
from tesserec.dataio.dataset import Dataset
from tesserec.sharding.plan import PlanError, ShardingPlan
from tesserec.sharding.planner.constraints import Constraints, ConstraintsError
from tesserec.sharding.planner.estimate import CostModel, Estimate
from tesserec.sharding.planner.grids import TopologyError
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.units import in_bytes
from tesserec.sharding.planner.workload import Workload, WorkloadFile
from tesserec.train.config import TrainConfig, check_ranks
from tesserec.train.planning import read_frequencies, workload_of

PRESETS = resources.files("tesserec.sharding.planner") / "presets"


@dataclass(frozen=True)
class Sources:
    """The files that say what to plan.

    source: a training config or a workload file; overrides: of its keys. topology: a file or a preset, "" for
    what `machine`, the file that calibrate writes, says. ranks: None for all of the topology.
    """

    source: str
    overrides: tuple[str, ...] = ()
    topology: str = ""
    machine: str = ""
    ranks: int | None = None
    stats: str = ""
    constraints: str = ""

    @classmethod
    def of_plan(cls, plan: ShardingPlan, path: Path) -> Sources:
        """Those that `plan`, from the file `path`, was made from. PlanError where it does not say."""
        kept = plan.planner.get("sources")
        if not isinstance(kept, Mapping):
            raise PlanError(
                f"{path}: does not say what it was made for, as plans of `tesserec plan` do: name the config"
            )
        known = {f.name: kept[f.name] for f in fields(cls) if f.name in kept}
        return cls(**known | {"overrides": tuple(kept.get("overrides", ()))})

    def to_dict(self) -> dict[str, Any]:
        """As a plan keeps it: the paths are absolute."""
        paths = {
            name: _absolute(getattr(self, name)) for name in ("source", "machine", "stats", "constraints")
        }
        topology = _absolute(self.topology) if Path(self.topology).is_file() else self.topology
        return {**asdict(self), **paths, "topology": topology, "overrides": list(self.overrides)}


@dataclass(frozen=True, eq=False)
class Case:
    """What is to be planned, and in words where its numbers came from.

    config: None for a workload file. topology_source: a path, or a preset's name.
    """

    sources: Sources
    workload: Workload
    topology: Topology
    constraints: Constraints
    topology_source: str
    statistics: str
    config: TrainConfig | None = None
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name of the config or workload file."""
        return Path(self.sources.source).name

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """{table: (R, D)}."""
        return self.workload.shapes()

    @cached_property
    def costs(self) -> CostModel:
        """What plans cost here."""
        return CostModel(self.workload, self.topology)

    def estimate(self, plan: ShardingPlan) -> Estimate:
        """What `plan` takes. PlanError if it is for something else."""
        return self.costs.estimate(plan)

    def limit(self, tier: str) -> npt.NDArray[np.float64]:
        """(W,) bytes of a tier that may be used."""
        asked = self.constraints.rank_bytes.get(tier, np.inf)
        return np.minimum(self.topology.tier_bytes(tier), asked)

    def table_named(self, name: str) -> str:
        """The full name of a table. PlanError where there is none of that name, or several."""
        fitting = [t for t in self.shapes if name == t or name == t.rpartition(".")[2]]
        if len(fitting) != 1:
            near = did_you_mean(name, [t.rpartition(".")[2] for t in self.shapes])
            what = (
                f"{len(fitting)} tables are called that: {', '.join(fitting)}" if fitting else "no such table"
            )
            raise PlanError(f"table {name!r}: {what}{near}")
        return fitting[0]

    def beside(self, plan: ShardingPlan, path: Path) -> Case:
        """The same, with a note where `plan`, of the file `path`, was made for other numbers.

        PlanError where it is for other tables, or another number of ranks.
        """
        ranks = self.costs.ranks
        if plan.num_ranks != ranks:
            raise PlanError(
                f"{path}: for {plan.num_ranks} ranks, but {self.topology.name} has {ranks}: "
                f"plan again, or check it with --topology and a file of {plan.num_ranks} ranks"
            )
        try:
            plan.check(self.shapes)
        except PlanError as error:
            raise PlanError(f"{path} is no plan for {self.sources.source}: {error}") from None
        made_for = plan.planner.get("workload", self.fingerprint)
        notes = ["the workload is not what the plan was made for: plan again"] * (
            made_for != self.fingerprint
        )
        there = plan.planner.get("topology", {}).get("fingerprint", fingerprint(self.topology))
        notes += ["the topology is not the one that the plan was made for"] * (
            there != fingerprint(self.topology)
        )
        return replace(self, notes=(*self.notes, *notes))

    @cached_property
    def fingerprint(self) -> str:
        """Of the workload, whatever was measured."""
        plain = replace(self.workload, dense=replace(self.workload.dense, seconds=None))
        return plain.fingerprint()

    def kept(self, step_seconds: float) -> dict[str, Any]:
        """What a plan remembers of its making."""
        return {
            "sources": self.sources.to_dict(),
            "workload": self.fingerprint,
            "topology": {"name": self.topology.name, "fingerprint": fingerprint(self.topology)},
            "step_seconds": step_seconds,
        }


def read_case(sources: Sources) -> Case:
    """Read all of it. ConfigError, TopologyError, DataError, PlanError name file and line, and what to do."""
    topology, found, notes = read_topology(sources)
    if is_workload_file(Path(sources.source)):
        config, words = None, "as the workload file says"
        workload = read_config(sources.source, WorkloadFile, sources.overrides).workload()
    else:
        config = read_config(sources.source, TrainConfig, sources.overrides)
        check_ranks(config, topology.num_ranks)
        dataset = Dataset.open(config.data.path)
        reads, words = read_frequencies(dataset, config, sources.stats)
        workload = workload_of(config, dataset, reads, measure=is_this_machine(topology))
    _check_widths(sources.source, workload, topology)
    constraints = read_constraints(sources.constraints, workload, topology)
    return Case(sources, workload, topology, constraints, found, words, config, tuple(notes))


def read_constraints(path: str, workload: Workload, topology: Topology) -> Constraints:
    """What the file asks, none for "". ConstraintsError, with the line, for what cannot be."""
    if not path:
        return Constraints()
    constraints = read_config(path, Constraints)
    try:
        constraints.of(workload.shapes(), topology)
    except ConstraintsError as error:
        raise ConstraintsError(f"{place_of(path, error.key)}: {error}", *error.key) from None
    return constraints


def _check_widths(source: str, workload: Workload, topology: Topology) -> None:
    """PlanError for a table of which no rank could hold a single row."""
    most = max(float(topology.tier_bytes(tier).max()) for tier in topology.tier_names)
    for table in workload.tables:
        if table.dim * table.item_bytes >= most:
            line = _place_of_table(source, table.name)
            raise PlanError(
                f"{line}: table {table.name!r}: a row of {table.dim:,} columns is "
                f"{in_bytes(table.dim * table.item_bytes)}, and no rank of {topology.name} has more than "
                f"{in_bytes(most)}: make it narrower"
            )


def _place_of_table(source: str, name: str) -> str:
    """The file and, of a workload file, the line that says how wide the table is."""
    tables = load_mapping(source).get("tables")
    entries = tables if isinstance(tables, list) else []
    names = [str(entry.get("name")) for entry in entries]
    fitting = [i for i, entry in enumerate(names) if name == entry or name.rpartition(".")[0] == entry]
    return place_of(source, ("tables", fitting[0], "dim") if fitting else ("model", "embedding_dim"))


def is_workload_file(path: Path) -> bool:
    """Whether the file has tables, where a training config has a model."""
    keys = load_mapping(path).keys()
    return "tables" in keys and "model" not in keys


def read_topology(sources: Sources) -> tuple[Topology, str, list[str]]:
    """(the topology, the path or preset that it is from, notes). TopologyError, ConfigError."""
    name, notes = sources.topology, list[str]()
    if not name:
        if not Path(sources.machine).is_file():
            raise TopologyError(
                "no --topology, and this machine has not been measured: run `tesserec plan calibrate` once "
                f"(under a minute), or name a file or one of the presets {', '.join(preset_names())}"
            )
        name = sources.machine
        notes.append(f"topology: this machine, as calibrated {_age(Path(name))} ago ({name})")
    topology = read_config(topology_file(name), Topology)
    if sources.ranks is not None:
        topology = topology.with_ranks(sources.ranks)
    return topology, name, notes


def preset_names() -> list[str]:
    """The topologies that come with Tesserec."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml")
    )


def topology_file(name: str) -> Path:
    """The file of a preset, or the path itself. TopologyError where there is neither."""
    if name in preset_names():
        return Path(str(PRESETS / f"{name}.yaml"))
    if not Path(name).is_file():
        near = did_you_mean(name, preset_names())
        raise TopologyError(
            f"topology {name!r}: no such file, nor preset{near} ({', '.join(preset_names())})"
        )
    return Path(name)


def is_this_machine(topology: Topology) -> bool:
    """Whether it was measured here."""
    return topology.measured.get("host") == platform.node()


def fingerprint(topology: Topology) -> str:
    """Twelve hex digits that change with anything in it."""
    return hashlib.sha256(repr(topology).encode()).hexdigest()[:12]


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if path else ""


def _age(path: Path) -> str:
    """`3 hours`: since the file was written."""
    seconds = max(0.0, time.time() - path.stat().st_mtime)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(seconds // length)) > 0:
            return f"{count} {unit}{'s' * (count > 1)}"
    return "less than a minute"
