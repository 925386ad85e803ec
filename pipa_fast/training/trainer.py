# SPDX-License-Identifier: Apache-2.0
"""The training run: builds what a Config describes, then steps, evaluates and saves."""

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipa_fast import __version__
from pipa_fast.checks import first_line, require
from pipa_fast.data.batch import Batch
from pipa_fast.data.loader import TrainingSet, batches, images_of
from pipa_fast.evaluation.classes import scored_classes
from pipa_fast.evaluation.inference import EvalResult, evaluate
from pipa_fast.evaluation.protocol import autocast_dtype
from pipa_fast.models import build_network
from pipa_fast.trace import trace_range, traced
from pipa_fast.training import checkpoint, resume
from pipa_fast.training.config import Config, to_dict
from pipa_fast.training.distributed import World, batch_norm_of, data_parallel, waited_in_vain
from pipa_fast.training.guard import StepGuard
from pipa_fast.training.heartbeat import Heartbeat
from pipa_fast.training.lock import lock_run
from pipa_fast.training.logging import Pace, RunLog
from pipa_fast.training.optimizer import build_optimizer, clip_gradients, find_apex
from pipa_fast.training.schedule import learning_rate_factor
from pipa_fast.uda.accumulation import InParts
from pipa_fast.uda.objectives import build_objectives
from pipa_fast.uda.outputs import mean_over_ranks
from pipa_fast.uda.step import AdaptationStep
from pipa_fast.uda.teacher import Teacher

# Ranks ask each other whether to stop so often [steps]: torchrun kills 30 s after it has asked.
STOP_EVERY = 5


class Interrupted(Exception):
    """A run was asked to stop, by whom its second argument says, and has saved its state."""

    def __str__(self) -> str:
        return str(self.args[0])


class RankLost(Exception):
    """A rank did not come to where the others wait."""


class Trainer:
    """One run, from its Config to its results."""

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        self.run_dir: Path = config.run_dir
        # before the network, whose weights may have to be fetched
        self.validation = images_of(config.data, "target", "val")
        self.training_set = _training_set(config)
        torch.manual_seed(config.seed)
        model = config.model
        model.projections = config.adaptation.needs_projections
        model.batch_norm = batch_norm_of(model.batch_norm, world)
        self.network = build_network(model).to(world.device)
        if model.start is not None:
            path = Path(model.start) / checkpoint.EXPORTED
            expected = f"the folder of a run, with its {checkpoint.EXPORTED}"
            require(path.is_file(), "model.start", model.start, expected)
            checkpoint.fit(self.network, checkpoint.read_weights(path), path)
        self.inputs = resume.inputs_of(config, self.training_set, self.validation, self.network)
        self.teacher: Teacher | None = None
        if config.adaptation.needs_teacher:
            self.teacher = Teacher(self.network, ceiling=config.adaptation.ema_alpha)
        objectives = build_objectives(config.adaptation, model, self.network)
        self.objectives = nn.ModuleList(objectives).to(world.device)
        self.apex = find_apex(world.device)
        self.optimizer = build_optimizer(self.network, config.optimizer, self.apex)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.dtype = autocast_dtype(config.precision, world.device)
        self.scaler = torch.amp.GradScaler(
            world.device.type, enabled=self.dtype == torch.float16, init_scale=2.0**12
        )
        student: nn.Module = self.network
        if config.data.micro_batch is not None:
            student = InParts(self.network, config.data.micro_batch)
        if world.size > 1:
            student = data_parallel(student, world)
        self.step = AdaptationStep(
            student,  # type: ignore[arg-type]
            self.teacher,
            list(self.objectives),  # type: ignore[arg-type]
            config.adaptation,
            seed=config.seed,
            autocast=functools.partial(
                torch.autocast, world.device.type, self.dtype, self.dtype is not None
            ),
            group=world.group,
        )
        kept = [self.network, self.objectives]
        if self.teacher is not None:
            kept.append(self.teacher.network)
        self.guard = StepGuard(kept, self.optimizer)
        self.writer = checkpoint.Writer()
        self.heartbeat = Heartbeat(world.rank, world.size, config.run.timeout, self._tell_hung)
        self.iteration = 0
        self.clock, self.logged = 0.0, 0  # when, and at which step, losses were last logged
        self.waited = 0.0  # for images since then [s]
        self.stop_asked = ""  # by which signal
        self.dropped = 0  # steps, when losses were last logged
        self.resumed_from = world.size  # ranks
        self.differences: list[str] = []  # from the run that this one goes on

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on, besides the settings."""
        return {
            "version": __version__,
            "iteration": self.iteration,
            "student": self.network.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            "objectives": self.objectives.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": to_dict(self.config),
            "ranks": self.world.size,
            "inputs": self.inputs,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state, of as many ranks or of another number of them.

        Raises:
            ValueError: the checkpoint is of other settings, images or first weights; `resume.check`
                names the differences.
        """
        self.differences = resume.check(
            self.config, state, ranks=self.world.size, inputs=self.inputs
        )
        resume.keep_first(self.config, state, self.inputs)
        self.network.load_state_dict(state["student"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        self.objectives.load_state_dict(state["objectives"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        self.resumed_from = state.get("ranks", self.world.size)  # not in those of 0.1

    def _resume(self) -> None:
        """Go on from the newest sound checkpoint, if there is one, and keep nothing else of it."""
        state = checkpoint.load_newest(self.run_dir)
        if state is not None:
            self.restore(state)

    def run(self) -> EvalResult:
        """Train to the end and return the last evaluation.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or SIGUSR1; the state is saved.
            FloatingPointError: no gradient was finite for `run.bad_steps` steps.
            RankLost: another rank did not come within `run.timeout`; where each stands is told.
            ValueError: another job has the run's folder; a checkpoint is of other settings.
            OSError: a file cannot be written.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(self.heartbeat)
            if self.world.is_main:
                held.enter_context(lock_run(self.run_dir))
                held.enter_context(self.writer)
            try:
                return self._run()
            except (FloatingPointError, OSError) as error:
                self._tell_failed(error)
                raise
            except (RuntimeError, dist.DistError) as error:
                # gloo's and NCCL's errors have no type of their own; others are not ours to hide.
                if self.world.size == 1 or not waited_in_vain(error):
                    raise
                lost = RankLost(f"{self.heartbeat.explain()} ({first_line(error)[:200]})")
                self._tell_failed(lost)
                raise lost from error

    def _tell_failed(self, error: Exception) -> None:
        with contextlib.suppress(OSError):  # the folder itself may be what failed
            self._tell("failed", str(error))

    def _tell_hung(self, where: str) -> None:
        """Say where a run hangs, which its own thread cannot."""
        self._tell_failed(RankLost(where))
        print(f"error: {where}; --run.resume auto goes on", file=sys.stderr, flush=True)

    def _run(self) -> EvalResult:
        config = self.config
        # What torchrun starts again goes on, whatever the first start was to do.
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if config.run.resume == "auto" or restarted:
            self._resume()
        kept: Path | None = None
        if self.world.is_main:
            kept = None if self.iteration else checkpoint.set_aside(self.run_dir)
            self.run_dir.mkdir(parents=True, exist_ok=True)
            checkpoint.sweep(self.run_dir)
            checkpoint.write_settings(self.run_dir, config)
        log = RunLog(
            self.run_dir, config.iterations, start=self.iteration, active=self.world.is_main
        )
        result: EvalResult | None = None
        with log, self._stop_on_signal():
            self._announce(log, kept)
            self.clock, self.logged = time.perf_counter(), self.iteration
            self._tell("running")
            if self.iteration % config.run.eval_every == 0 and self._any(log.unscored):
                result = self._evaluate(log)
            self.heartbeat.at("loading", self.iteration + 1)
            for batch in self._awaited(self._batches()):
                self.heartbeat.at("training", self.iteration + 1)
                losses = self._train_step(batch)
                self.iteration += 1
                log.advance()
                self._log(log, losses, batch)
                done = self.iteration == config.iterations
                saved = done or self.iteration % config.run.checkpoint_every == 0
                if saved:  # first: who is killed in the evaluation has lost only that
                    self._save()
                if done or self.iteration % config.run.eval_every == 0:
                    result = self._evaluate(log)
                slot_over = not done and self.iteration == config.run.stop_after
                if self._must_stop() or slot_over:
                    self._tell_dropped(log, self.guard.counts()[0])
                    if not saved:
                        self._save()
                    self.writer.wait()
                    self._any(False)  # srun ends all machines with the first that leaves
                    why = self.stop_asked or ("run.stop_after" if slot_over else "another rank")
                    self._tell("stopped", f"asked by {why}; --run.resume auto goes on")
                    raise Interrupted(f"stopped after step {self.iteration}", why)
                self.heartbeat.at("loading", self.iteration + 1)
            self.writer.wait()
            if result is None:  # resumed at the last step
                result = self._evaluate(log)
        self._finish(result)
        self._tell("finished")
        return result

    def _tell(self, state: str, reason: str = "") -> None:
        if self.world.is_main:
            checkpoint.write_status(self.run_dir, state, self.iteration, reason)

    def _announce(self, log: RunLog, kept: Path | None) -> None:
        """Say from where the run goes on, and what to know of its terms."""
        config, size = self.config, self.world.size
        others = ""
        if self.resumed_from != size:
            others = (
                f" on {size} ranks instead of {self.resumed_from}: every step sees the same images "
                "as before, and what is drawn for each rank (dropout) is drawn anew"
            )
        if self.iteration:
            log.say(f"resumed {self.run_dir} at step {self.iteration}{others}")
            for line in self.differences:
                log.say(line)
        elif kept is not None:
            log.say(f"starting anew in {self.run_dir}; the earlier run is now {kept}")
        batch, facts = config.data.batch_size, self._surroundings()
        shared = f", data.batch_size {batch} on each of {size} ranks" if size > 1 else ""
        log.say(f"{batch * size} images a step{shared}, in {facts['dtype']} on {facts['device']}")
        for objective in self.step.objectives:
            for caution in objective.cautions(
                iterations=config.iterations,
                images=config.data.batch_size * size,
                classes=config.model.num_classes,
            ):
                log.say(f"{objective.name} {caution}")

    def _batches(self) -> Iterator[Batch]:
        return batches(
            self.training_set,
            start=self.iteration,
            iterations=self.config.iterations,
            rank=self.world.rank,
            world_size=self.world.size,
            device=self.world.device,
        )

    def _awaited(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches, and add up the time that they are waited for."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def _train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Step the student once and let the teacher follow."""
        config = self.config
        torch.manual_seed(hash((config.seed, self.iteration, self.world.rank)) & (2**63 - 1))
        factor = learning_rate_factor(
            self.iteration,
            config.iterations,
            warmup=config.optimizer.warmup,
            warmup_ratio=config.optimizer.warmup_ratio,
            power=config.optimizer.power,
        )
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor
        self.network.train()
        self.guard.begin()
        with trace_range("step", batch.target_image):
            losses = self.step(batch, self.iteration, scale=self.scaler.scale)
            with trace_range("optimizer"):
                self._optimize()
            if self.teacher is not None:
                with trace_range("ema"):
                    self.teacher.update(self.network, self.iteration + 1)
        return losses

    def _optimize(self) -> None:
        """Let the optimizer take its step and drop the gradients."""
        clip = self.config.optimizer.clip
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
        self.guard.look()
        if clip is not None:
            clip_gradients(self.network.parameters(), clip, self.apex)
        self.guard.step(self.scaler)
        self.optimizer.zero_grad()  # sets them to None; apex's takes no argument

    def _log(self, log: RunLog, losses: dict[str, Tensor], batch: Batch) -> None:
        """Every `log_every` steps and after the last, read losses back, check and record them."""
        last = self.iteration == self.config.iterations
        if self.iteration % self.config.run.log_every and not last:
            return
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        values = torch.stack([v.float() for v in losses.values()])
        values = mean_over_ranks(values, self.world.group)
        named = dict(zip(losses, values.tolist(), strict=True))
        self._check_steps(log, named, batch)
        steps, self.logged = self.iteration - self.logged, self.iteration
        waited, self.waited = self.waited, 0.0
        device, memory = self.world.device, None
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
        images = self.config.data.batch_size * self.world.size
        pace = Pace(seconds / steps, images, waited / seconds, memory)
        log.train(self.iteration, named, self.optimizer.param_groups[0]["lr"], pace)

    def _check_steps(self, log: RunLog, losses: dict[str, float], batch: Batch) -> None:
        """Tell of steps that were left out; raise FloatingPointError where no other ones come."""
        dropped, in_a_row = self.guard.counts()
        if in_a_row >= self.config.run.bad_steps:
            path = checkpoint.write_batch(self.run_dir, batch, self.iteration, self.world.rank)
            raise FloatingPointError(
                f"step {self.iteration}: no gradient was finite for {in_a_row} steps, of which "
                f"nothing was kept; losses are {losses}. The batch is in {path}; lower "
                "optimizer.lr or choose --precision fp32, and resume"
            )
        self._tell_dropped(log, dropped)

    def _tell_dropped(self, log: RunLog, dropped: int) -> None:
        """Tell how many of the steps that were left out have not been told of."""
        if dropped > self.dropped:
            log.say(
                f"step {self.iteration:6d}  {dropped - self.dropped} steps left out: a gradient "
                "was not finite"
            )
        self.dropped = dropped

    @traced("evaluate")
    def _evaluate(self, log: RunLog) -> EvalResult:
        self.heartbeat.at("evaluation", self.iteration)
        start = time.perf_counter()
        # Programs are compiled for the crops: whole images of other sizes would take minutes each.
        with torch.compiler.set_stance("force_eager"):
            result = evaluate(
                self.network,
                self.validation,
                batch_size=self.config.evaluation.batch_size,
                device=self.world.device,
                dtype=self.dtype,
                **self.config.evaluation.view,
                classes=scored_classes(
                    self.config.evaluation.classes, self.validation.eval_classes
                ),
                names=self.config.class_names,
                group=self.world.group,
                progress=lambda _: self.heartbeat.at("evaluation", self.iteration),
            )
        log.evaluated(self.iteration, result)
        self.clock += time.perf_counter() - start  # it is no part of the steps' time
        return result

    @traced("save")
    def _save(self) -> None:
        self.heartbeat.at("saving", self.iteration)
        if self.world.is_main:
            run = self.config.run
            self.writer.save(
                self.run_dir,
                self.state(),
                self.iteration,
                keep=run.keep,
                keep_every=run.keep_every,
            )

    def _finish(self, result: EvalResult) -> None:
        """Write the exported network and `results.json`."""
        if not self.world.is_main:
            return
        checkpoint.export(self.run_dir, self.network)
        checkpoint.write_results(
            self.run_dir,
            {
                **result.summary(),
                "recipe": self.config.recipe,
                "iteration": self.iteration,
                "seed": self.config.seed,
                **self._surroundings(),
            },
        )

    def _surroundings(self) -> dict[str, Any]:
        """Return what a run's scores depend on beside its settings."""
        device = self.world.device
        on_gpu = device.type == "cuda"
        return {
            "images_per_step": self.config.data.batch_size * self.world.size,
            "ranks": self.world.size,
            "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
            "dtype": str(self.dtype or torch.float32).removeprefix("torch."),
            "pipa_fast": __version__,
            "torch": torch.__version__,
        }

    @contextlib.contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """Let the first SIGINT, SIGTERM or SIGUSR1 ask for a stop; a second one acts at once."""

        asks = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {n: signal.getsignal(n) for n in asks}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def ask(number: int, _frame: object) -> None:
            self.stop_asked = signal.Signals(number).name
            restore()

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            restore()

    def _must_stop(self) -> bool:
        """Whether some rank was asked to stop; all ranks answer alike at the same step."""
        if self.world.size > 1 and self.iteration % STOP_EVERY:
            return False
        return self._any(bool(self.stop_asked))

    def _any(self, here: bool) -> bool:
        """Whether it is so on some rank; returns once all have asked."""
        if self.world.size == 1:
            return here
        flag = torch.tensor(float(here))  # on the host: no GPU is waited for
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())


def _training_set(config: Config) -> TrainingSet:
    data, patch = config.data, config.adaptation.patch
    return TrainingSet(
        images_of(data, "source", "train"),
        images_of(data, "target", "train", labelled=False),
        data,
        seed=config.seed,
        with_crops=patch.weight > 0,
        crop_is_target=patch.first_is_target,
    )
