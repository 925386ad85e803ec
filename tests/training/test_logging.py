# SPDX-License-Identifier: Apache-2.0
import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipa_fast.training.logging import Pace, RunLog

PACE = Pace(seconds=4.5, images=2, waiting=0.02, memory=18 << 30)


def record(folder, start, iterations):
    with RunLog(folder, 8, start=start, active=True) as log:
        for iteration in iterations:
            log.train(iteration, {"source": float(start)}, 1e-3, PACE)


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    """The step of the checkpoint is kept, and what came after it is written anew."""
    record(tmp_path, 0, (2, 4, 6))
    for path in tmp_path.glob("events*"):  # which are read by name, with the second in it
        path.rename(tmp_path / "events.out.tfevents.0000000001")
    record(tmp_path, 4, (6, 8))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    losses = [(e.step, e.value) for e in events.Scalars("loss/source")]
    assert losses == [(2, 0.0), (4, 0.0), (6, 4.0), (8, 4.0)]


def test_names_are_text(tmp_path, capsys):
    with RunLog(tmp_path, 1, start=0, active=True) as log:
        log.say("in runs/lr[red]")
    assert capsys.readouterr().out == "in runs/lr[red]\n"


def test_curves_are_there_as_soon_as_they_are_logged(tmp_path):
    with RunLog(tmp_path, 8, start=0, active=True) as log:
        for iteration in (2, 4):
            log.train(iteration, {"source": 1.0}, 1e-3, PACE)
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        assert [e.step for e in events.Scalars("loss/source")] == [2, 4]


def test_a_line_tells_the_pace_of_slow_steps_and_what_is_left(tmp_path, capsys):
    with RunLog(tmp_path, 40_000, start=0, active=True) as log:
        log.train(4_000, {"source": 1.0}, 6e-5, PACE)
    assert capsys.readouterr().out == (
        "step   4000  source 1.000  lr 6e-05  4.5 s/step (2% waiting for images)  18.0 GiB  "
        "1 day, 21:00:00 left\n"
    )
    (record,) = map(json.loads, (tmp_path / "history.jsonl").open())
    assert record["images_per_second"] == 0.44
    assert record["seconds_per_step"] == 4.5
    assert record["waiting"] == 0.02
    assert record["memory_gib"] == 18
