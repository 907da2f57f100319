"""`tesserec train`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tesserec.cli.console import console, metric_table, out, progress_bar
from tesserec.cli.export import STORED
from tesserec.cli.publish import PublishedModel
from tesserec.cli.ranks import errors_in_one_line, joined
from tesserec.sharding.launch import handling_signals

if TYPE_CHECKING:
    from tesserec.train.loop import State, Trainer

SHOWN = ("auc", "auc_histogram", "gauc", "log_loss", "ne", "calibration")


def train(
    config: Annotated[Path, typer.Argument(help="What to train: a YAML or TOML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a key, such as train.epochs=3; repeatable."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw away the run that is there.")] = False,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", help="Processes that share the tables and the batches; starts MPI.", min=1),
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option("--timeline", help="Write what the first steps do when: for ui.perfetto.dev."),
    ] = None,
    publish: Annotated[
        Path | None,
        typer.Option(
            "--publish",
            help="REPOSITORY/MODEL that `tesserec serve` serves: new versions, and what steps change.",
        ),
    ] = None,
    publish_every: Annotated[
        float, typer.Option("--publish-every", help="Seconds between what is published.", min=0.0)
    ] = 1.0,
    full_every: Annotated[
        int,
        typer.Option(
            "--full-every", help="Publish a new version after so many changes; a restart reads them.", min=1
        ),
    ] = 3600,
    publish_tables: Annotated[
        Literal["fp32", "fp16", "int8", "int4"] | None,
        typer.Option("--publish-tables", help="Serve the tables like this.", show_default="as trained"),
    ] = None,
    candidate_id: Annotated[
        str | None,
        typer.Option("--candidate-id", help="Of what is published, the raw column that names a candidate."),
    ] = None,
) -> None:
    """Train a ranking model on a prepared data set.

    Ctrl-C finishes the step, saves, and says how to go on. The run folder holds all that `tesserec evaluate`
    and `tesserec predict` need. Under an outer mpiexec or srun, its processes are the ranks.
    """
    from tesserec.dataio.config import read_config
    from tesserec.sharding.watchdog import watch
    from tesserec.train.config import TrainConfig
    from tesserec.train.export import ExportOptions
    from tesserec.train.loop import Trainer
    from tesserec.train.publishing import Publishing

    settings = read_config(config, TrainConfig, overrides or ()).anchored(Path("runs") / config.stem)
    comm = joined(ranks)
    signals: list[int] = []
    publishing = None
    if publish is not None and settings.output is not None:
        options = ExportOptions(publish_tables and STORED[publish_tables], candidate_id)
        published = PublishedModel(publish, settings.output, options)
        publishing = Publishing(published.whole, published.changed, publish_every, full_every)
    with (
        watch(comm, settings.sharding.timeout),
        errors_in_one_line(comm),
        noting_signals(signals, say=comm.rank == 0),
    ):
        trainer = Trainer(
            settings,
            resume=resume,
            overwrite=overwrite,
            should_stop=lambda: bool(signals),
            comm=comm,
            timeline=timeline,
            publishing=publishing,
        )
        stopped = fit(trainer)
        numbers = comm.gather_objects(signals[:1])
    if comm.rank == 0 and stopped:
        console.print(
            f"Stopped and saved at step {trainer.state.step:,}. To go on, add --resume to the same command."
        )
    if stopped:
        comm.leave(128 + max(chain(*numbers)))


def fit(trainer: Trainer) -> bool:
    """Train, with a bar and a report on rank 0 -> whether it was stopped before its end. Collective."""
    from tesserec.sharding.watchdog import patience
    from tesserec.train.loop import Interrupted, Watcher
    from tesserec.train.report import write_outcome

    with ExitStack() as stack:
        if trainer.comm.rank == 0:
            bar = _Bar(stack.enter_context(progress_bar("train", trainer.total_steps, "steps")))
            trainer.watcher = Watcher(bar.started, bar.stepped, bar.validating, bar.validated)
        with suppress(Interrupted):
            trainer.fit()
    stopped = not trainer.finished()
    if trainer.comm.rank == 0:
        with patience("the report"):
            report = write_outcome(trainer)
        if not stopped:
            _show(report)
    return stopped


class _Bar:
    """Training as a progress bar; at most five updates a second."""

    def __init__(self, update: Callable[..., None]):
        self.update = update
        self.loss: float | None = None  # a moving mean
        self.speed: float | None = None
        self.shown = (time.monotonic(), 0)  # when, and how many samples were seen

    def started(self, state: State, total: int) -> None:
        self.update(state.step, state.finished or "first step: a new machine compiles kernels", total)

    def stepped(self, state: State, loss: float, total: int) -> None:
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        seconds, samples = time.monotonic() - self.shown[0], state.samples - self.shown[1]
        if seconds < 0.2 and state.step < total:
            return
        if self.shown[1]:
            speed = samples / seconds
            self.speed = speed if self.speed is None else 0.9 * self.speed + 0.1 * speed
        self.shown = (time.monotonic(), state.samples)
        speed_note = f" · {self.speed:,.0f} samples/s" if self.speed else ""
        self.update(state.step, f"loss {self.loss:.4f}{speed_note}", total)

    def validating(self, rows: int) -> None:
        if time.monotonic() - self.shown[0] >= 0.2:
            self.update(None, f"validating · {rows:,} rows")
            self.shown = (time.monotonic(), 0)

    def validated(self, line: dict[str, Any]) -> None:
        from tesserec.train.report import TITLES

        values = " · ".join(f"{TITLES[name]} {line[name]:.5f}" for name in SHOWN if name in line)
        best = " · best" if line["best"] else ""
        console.print(f"step {line['step']:,}: {values}{best}", highlight=False, soft_wrap=True)
        self.shown = (time.monotonic(), 0)


@contextmanager
def noting_signals(seen: list[int], *, say: bool = True) -> Iterator[None]:
    """The first SIGINT or SIGTERM inside is only noted in `seen`; a second one leaves at once."""

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise SystemExit(128 + number)
        seen.append(number)
        if say:
            console.print("Finishing the step and saving. Once more to leave at once, without.")

    with handling_signals(note):
        yield


def _show(report: dict[str, Any]) -> None:
    """The outcome as a table, and where things are."""
    best = report["best_validation"] or {}
    console.print(
        f"[bold]{report['outcome']}[/]: {report['samples']:,} samples in {report['training_seconds']:.1f} s"
        f" ({report['samples_per_second'] or 0:,.0f} a second), {report['threads']} threads"
    )
    if report["unseen_ids"]:
        counts = ", ".join(f"{feature} {count:,}" for feature, count in report["unseen_ids"].items())
        console.print(f"ids that the tables do not have, while training: {counts}", soft_wrap=True)
    if best:
        out.print(metric_table({f"validation, step {best['step']:,}": best}))
    console.print(f"report, learning curve and checkpoints are in {report['run']}", soft_wrap=True)
