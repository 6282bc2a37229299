"""The training loop, explicit and top-down: prepare, epochs of steps, validate, save, finish.

What happens in a step is in `_step`, in an epoch in `_train_epoch` and `_close_epoch`. Ranks differ only in
which structures of the global batch they hold (`train.batches`); all sums and counts are global.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.errors import GfmError
from gfm.model.build import build_potential
from gfm.model.graph import Graph
from gfm.runtime.config import dump_config
from gfm.runtime.power import EnergyMeter
from gfm.runtime.runs import RunFolder
from store.dataset import open_dataset
from store.samples import SampleStore, open_samples
from train import checkpoint
from train.batches import GlobalBatches, Share
from train.config import TrainConfig
from train.evaluate import evaluate
from train.feed import Ahead, GraphMaker
from train.interrupt import CtrlC, Interrupted, StopRequest
from train.loss import Objective, energy_errors, force_errors, label_counts
from train.optimize import MovingAverage, build_optimizer, learning_rate
from train.progress import Reporter
from train.ranks import Ranks, joined
from train.results import TrainResult, finish, finished, write_summary
from train.scales import structure_names, training_scales
from train.setup import DTYPES, Selection, begin, select
from train.state import EpochRecord, State, save_best

__all__ = ["Diverged", "EpochRecord", "Interrupted", "TrainResult", "train"]


class Diverged(GfmError, ArithmeticError):
    """A loss or gradient that is not finite; the text names the step and the structures."""


@dataclass(frozen=True)
class _Run:
    """What stays the same during a run."""

    config: TrainConfig
    ranks: Ranks
    folder: RunFolder
    samples: SampleStore
    stored: list[str]
    selection: Selection
    batches: GlobalBatches
    make_graph: GraphMaker
    meter: EnergyMeter
    reporter: Reporter
    content_hash: str
    on_step: Callable[[int, float], None] | None

    @property
    def total_steps(self) -> int:
        return self.config.epochs * len(self.batches)


def train(
    config: TrainConfig,
    *,
    comm: Any | None = None,
    resume: bool = True,
    on_epoch: Callable[[EpochRecord], bool] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    samples: SampleStore | None = None,
    extend: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train a potential, or go on with a run that was interrupted.

    Every epoch gives one record, a line of metrics.jsonl: ``epoch`` (0 is before training), ``step``,
    ``learning_rate``, ``train`` ({"loss"}), ``validation`` (see `train.evaluate.evaluate`; of the averaged
    weights), ``structures_per_second`` (of training), ``seconds`` and ``joules`` (of this epoch, all ranks,
    validation included), ``joules_method``, ``ranks``, ``store``.

    Args:
        config: What to train, and how.
        comm: MPI communicator of the ranks that train together; None for this process alone.
        resume: Go on from the newest complete checkpoint in the run's folder; False starts over.
        on_epoch: Called on rank 0 with each record but epoch 0's; False stops all ranks after a checkpoint.
        on_step: Called on rank 0 after each step with its number and the loss of the global batch; on every
            rank it has to be given or not, as it takes one more sum over the ranks.
        samples: An open sample store of the dataset, which stays open; by default one is opened.
        extend: Allow a run to go on that was begun with fewer epochs.
        quiet: Show nothing on stderr.

    Raises:
        ConfigError: The folder holds a run of another configuration, or the configuration cannot be used.
        DataError: The dataset is missing, damaged or too small.
        ResourceError: Memory would not suffice.
        Diverged: A loss is not finite.
        Interrupted: SIGTERM, SIGUSR1 or Ctrl-C came; a checkpoint was written.
    """
    torch.set_num_threads(config.threads)
    with (
        joined(comm, config.device) as ranks,
        Reporter(shown=not quiet and ranks.rank == 0, epochs=config.epochs) as reporter,
        EnergyMeter(
            gpu=ranks.device.index if ranks.device.type == "cuda" else None, share=1 / ranks.on_node
        ) as meter,
        StopRequest() as stop,
    ):
        folder = RunFolder(config.output)
        found = ranks.first(
            lambda: begin(folder, config, ranks.size, resume=resume, extend=extend, say=reporter.say)
        )
        if found is not None and (done := ranks.first(lambda: finished(folder, config, found))) is not None:
            return done
        dataset = open_dataset(config.dataset)
        selection = select(dataset, config)
        opened = samples is None
        if samples is None:
            samples = open_samples(dataset, config.store, comm, selection.ids)
        costs = (
            config.batch.edge_cost * dataset.num_edges[selection.train].astype(np.float64)
            + config.batch.atom_cost * dataset.num_atoms[selection.train]
        )
        run = _Run(
            config=config,
            ranks=ranks,
            folder=folder,
            samples=samples,
            stored=dataset.dataset_names,
            selection=selection,
            batches=GlobalBatches(
                selection.train,
                costs,
                config.batch.size * ranks.size,
                ranks.size,
                config.seed,
                config.batch.balance,
            ),
            make_graph=GraphMaker(
                config.model, dataset.dataset_names, selection.names, DTYPES[config.precision], ranks.device
            ),
            meter=meter,
            reporter=reporter,
            content_hash=dataset.manifest.content_hash,
            on_step=on_step,
        )
        used = [dataset.dataset_names.index(name) for name in selection.names]
        kinds = [dataset.manifest.datasets[index].energy_kind for index in used]
        state = _build(run, dataset.references[used], kinds)
        if found is not None:
            state.restore(checkpoint.read(found), run.batches, ranks, run.content_hash)
        ranks.first(lambda: _open_folder(run, state))
        try:
            result = _run_epochs(run, state, stop, on_epoch)
        except (Diverged, Interrupted) as error:  # on all ranks at once, so that they can close together
            if isinstance(error, Diverged):
                ranks.first(lambda: write_summary(folder, state, _about(run, "diverged")))
            if opened:
                samples.close()
            raise
        if opened:
            samples.close()
        return result


def _build(run: _Run, references: NDArray[np.float64], energy_kinds: list[str]) -> State:
    """Build model, objective and optimiser, the same on every rank."""
    config, ranks = run.config, run.ranks
    torch.manual_seed(config.seed)
    scales = training_scales(
        run.samples,
        run.selection.train,
        references,
        stored=run.stored,
        trained=run.selection.names,
        ranks=ranks,
    )
    potential = build_potential(
        config.model,
        run.selection.names,
        references,
        # Forces that are gradients carry the energy's scale: there, a typical force is the better one, as in
        # Batzner et al. 2022, doi:10.1038/s41467-022-29939-5.
        energy_scale=scales.energy if config.model.forces == "direct" else scales.forces,
        forces_scale=scales.forces,
        seen=scales.seen,
        energy_kinds=energy_kinds,
        seed=config.seed,
    )
    potential = potential.to(device=ranks.device, dtype=DTYPES[config.precision]).train()
    return State(
        potential=potential,
        objective=ranks.parallel(Objective(potential, config.loss)),
        average=MovingAverage(potential, config.optimizer.ema),
        optimizer=build_optimizer(potential, config.optimizer),
    )


def _open_folder(run: _Run, state: State) -> None:
    """Bring the folder in line with the state: configuration, provenance, nothing from beyond it."""
    run.folder.cut_after(state.epoch if state.best is not None or state.position else -1)
    run.folder.write_config(dump_config(run.config))
    run.folder.add_provenance(ranks=run.ranks.size, epoch=state.epoch, position=state.position)
    if state.best is not None:
        save_best(state, run.folder)


def _run_epochs(
    run: _Run, state: State, stop: StopRequest, on_epoch: Callable[[EpochRecord], bool] | None
) -> TrainResult:
    """Train to the last epoch, or until somebody says stop."""
    if state.epoch == 0 and state.position == 0:
        _close_epoch(run, state, time.perf_counter())
    status = "finished"
    while state.epoch < run.config.epochs:
        began = time.perf_counter()
        _train_epoch(run, state, stop)
        record = _close_epoch(run, state, began)
        last = state.epoch == run.config.epochs
        due = last or state.epoch % run.config.checkpoint.every == 0
        if due:
            _save(run, state, record)
        go_on = run.ranks.first(lambda: on_epoch is None or on_epoch(record) is not False)  # noqa: B023
        if not go_on and not last:
            status = "stopped"
            if not due:
                _save(run, state, record)
            break
    return run.ranks.first(
        lambda: finish(
            run.folder,
            state,
            _about(run, status),
            parity=(run.samples, run.selection.validation, run.stored) if run.config.plots else None,
        )
    )


def _train_epoch(run: _Run, state: State, stop: StopRequest) -> None:
    """Take the remaining steps of an epoch.

    Raises:
        Interrupted: A signal came on some rank; the state was saved after the step it came in.
    """
    began = time.perf_counter()

    def prepare(share: Share) -> tuple[Share, RaggedBatch, Graph]:
        batch = run.samples.get(share.ids)
        graph = run.make_graph(batch)
        if share.idle:
            nothing = {name: torch.zeros_like(mask) for name, mask in graph.masks.items()}
            graph = replace(graph, masks=nothing)
        return share, batch, graph

    shares = run.batches.shares(state.epoch, run.ranks.rank, state.position)
    run.reporter.begin_epoch(state.epoch + 1, state.position, len(run.batches.ids))
    stopping = 0
    with Ahead(shares, prepare) as feed:
        for share, batch, graph in feed:
            loss, stopping = _step(run, state, batch, graph, stop.number)
            state.loss_sum += loss * share.size
            state.position = share.stop
            run.reporter.step(state.position, loss)
            if run.on_step is not None:
                total = float(run.ranks.sum(torch.tensor(loss, dtype=torch.float64, device=run.ranks.device)))
                if run.ranks.rank == 0:
                    run.on_step(state.step, total)
            if stopping:
                break
    state.spent.training_seconds += time.perf_counter() - began
    if stopping:
        _charge(run, state, began)
        _save(run, state, None)
        run.ranks.first(lambda: write_summary(run.folder, state, _about(run, "interrupted")))
        kind = CtrlC if stopping == signal.SIGINT else Interrupted
        raise kind(
            f"stopped by {signal.Signals(stopping).name} after step {state.step} (epoch {state.epoch + 1}, "
            f"{state.position} of {len(run.batches.ids)} structures); a checkpoint is in {run.folder.path}. "
            "The same command goes on from there."
        )


def _step(run: _Run, state: State, batch: RaggedBatch, graph: Graph, signalled: int) -> tuple[float, int]:
    """Take one optimiser step; return this rank's part of the loss, and a signal that some rank received."""
    ranks, config = run.ranks, run.config
    # Labels of the global batch, and whether any rank was told to stop: all then stop after the same step.
    counts = torch.cat([label_counts(graph), torch.tensor([signalled], device=ranks.device)])
    counts = ranks.sum(counts)
    stopping = 0 if not counts[2] else signalled or signal.SIGTERM
    rate = learning_rate(state.step, run.total_steps, config.optimizer)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss = state.objective(graph, counts[:2])
    # Gradients are averaged over ranks, but each rank's loss is its part of a sum.
    (loss * ranks.size).backward()
    clip = config.optimizer.clip or float("inf")
    norm = torch.nn.utils.clip_grad_norm_(state.potential.parameters(), clip)
    if not norm.isfinite():  # on all ranks, since gradients are the same
        raise Diverged(_divergence(run, state, batch, graph))
    state.optimizer.step()
    state.average.update(state.potential)
    state.step += 1
    return float(loss.detach()), int(stopping)


def _divergence(run: _Run, state: State, batch: RaggedBatch, graph: Graph) -> str:
    """Say which structures' predictions or labels are not finite."""
    prediction = state.potential(graph)
    bad = ~energy_errors(prediction, graph).isfinite()
    bad_atoms = ~force_errors(prediction, graph).isfinite().all(-1)
    bad[graph.graph_index[bad_atoms]] = True
    rows = bad.nonzero().flatten().tolist()
    everything = np.arange(len(batch))
    names = structure_names(batch, np.array(rows, dtype=np.int64) if rows else everything, run.stored)
    gathered = run.ranks.gather((bool(rows), names))
    known = [name for exact, found in gathered if exact for name in found]
    where = known or [name for _, found in gathered for name in found]
    what = "not finite for" if known else "finite, but the gradient is not, in the batch of"
    shown = ", ".join(where[:8]) + (f" and {len(where) - 8} more" if len(where) > 8 else "")
    return (
        f"step {state.step + 1} (epoch {state.epoch + 1}): the loss is {what} {shown} (source:key). "
        "Training diverged: lower optimizer.learning_rate, raise optimizer.warmup_steps or set optimizer.clip."
    )


def _close_epoch(run: _Run, state: State, began: float) -> EpochRecord:
    """Validate the averaged weights, write the epoch's record, keep the best model."""
    config, ranks = run.config, run.ranks
    training = state.position > 0
    loss_sum = float(ranks.sum(torch.tensor(state.loss_sum, dtype=torch.float64, device=ranks.device)))
    potential = state.average.module
    validation = evaluate(
        potential,
        run.samples,
        run.selection.validation,
        stored=run.stored,
        loss=config.loss,
        batch_size=config.batch.size,
        ranks=ranks,
    )
    if not np.isfinite(validation["loss"]):
        raise Diverged(f"after step {state.step}: the validation loss is {validation['loss']}")
    _charge(run, state, began)
    spent = state.spent
    structures = len(run.batches.ids)
    state.epoch += 1 if training else 0
    record: EpochRecord = {
        "epoch": state.epoch,
        "step": state.step,
        "learning_rate": learning_rate(max(0, state.step - 1), run.total_steps, config.optimizer),
        "train": {"loss": loss_sum / structures if training else None},
        "validation": validation,
        "structures_per_second": structures / spent.training_seconds if training else None,
        "seconds": spent.epoch_seconds,
        "joules": spent.epoch_joules,
        "joules_method": run.meter.method,
        "ranks": ranks.size,
        "store": run.samples.kind,
    }
    state.position, state.loss_sum = 0, 0.0
    spent.epoch_seconds = spent.epoch_joules = spent.training_seconds = 0.0
    improved = training and state.note_best(record)

    def write() -> None:
        run.folder.append(record)
        if improved:
            save_best(state, run.folder)
        write_summary(run.folder, state, _about(run, "running"))
        run.reporter.end_epoch(record)

    ranks.first(write)
    return record


def _charge(run: _Run, state: State, began: float) -> None:
    """Add the seconds since ``began`` and the joules since the last time, over all ranks."""
    seconds = time.perf_counter() - began
    total = float(run.ranks.sum(torch.tensor(run.meter.joules, dtype=torch.float64, device=run.ranks.device)))
    joules = total - state.charged
    state.charged = total
    state.spent.seconds += seconds
    state.spent.epoch_seconds += seconds
    state.spent.joules += joules
    state.spent.epoch_joules += joules


def _save(run: _Run, state: State, record: EpochRecord | None) -> None:
    """Write a checkpoint, after an epoch (with its record) or within one."""
    loss = None if record is None else record["validation"]["loss"]
    state.save(run.folder, run.config, run.ranks, run.content_hash, loss)


def _about(run: _Run, status: str) -> dict[str, Any]:
    """Return what the summary says beside the state."""
    return {
        "status": status,
        "ranks": run.ranks.size,
        "store": run.samples.kind,
        "joules_method": run.meter.method,
        "train_structures": len(run.selection.train),
        "validation_structures": len(run.selection.validation),
        "dataset": str(run.config.dataset),
        "content_hash": run.content_hash,
    }
