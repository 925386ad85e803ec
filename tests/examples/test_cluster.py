# SPDX-License-Identifier: Apache-2.0
"""The examples for clusters: what they would start is a command that pipa_fast.train takes."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipa_fast.training.config import parse

CLUSTER = Path(__file__).resolve().parents[2] / "examples/cluster"
SLURM = CLUSTER / "slurm.sh"
BASH = shutil.which("bash") or "no bash"
STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


pytestmark = pytest.mark.skipif(BASH == "no bash", reason="there is no bash")


def configured(words):
    """The settings that a command line for pipa_fast.train gives."""
    return parse(words[words.index("pipa_fast.train") + 1 :])


SRUN = """
echo "srun $*" >>"$CALLS"
echo "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" >>"$CALLS"
stop() { echo "{\\"reason\\": \\"asked by $1\\"}" >runs/streets_pipa/status.json; exit 1; }
trap 'stop SIGTERM' TERM
case $END in
    *by*) stop "${END#*by }" ;;
    fails) exit 1 ;;
    never) echo ready >>"$CALLS"; while true; do sleep 0.1; done ;;
esac
"""


@pytest.fixture
def slurm(tmp_path):
    """Runs the script where its programs are ours; `srun` ends as $END says."""
    for name, text in {
        "scontrol": 'echo "scontrol $*" >>"$CALLS"; [ "$1" != show ] || printf "n1\\nn2\\n"',
        "srun": SRUN,
        "python": f'[ -z "$REAL" ] && echo runs/streets_pipa || exec {sys.executable} "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    calls, old = tmp_path / "calls", tmp_path / "runs/streets_pipa/status.json"
    calls.touch()
    old.parent.mkdir(parents=True)
    old.write_text('{"reason": "asked by SIGTERM"}')  # of an earlier job
    os.utime(old, (0, 0))
    job = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
    job |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "CALLS": str(calls), "END": "well"}
    job |= {"REAL": ""}  # whether Python reads the settings, which takes seconds
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(CLUSTER.parents[1])}

    def start(*words, **changes):
        command = [BASH, str(SLURM), *words]
        environment = os.environ | job | path | changes
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE)

    return start, calls


def test_slurm_script_is_bash_and_a_dry_run_is_a_command():
    subprocess.run([BASH, "-n", SLURM], check=True)
    command = [BASH, SLURM, "streets_pipa", "--seed", "3"]
    done = subprocess.run(
        command, env=os.environ | {"DRY_RUN": "1"}, capture_output=True, text=True, check=True
    )
    words = shlex.split(done.stdout)
    assert words[:2] == ["srun", "torchrun"]
    config = configured(words)
    assert (config.recipe, config.seed, config.run.resume) == ("streets_pipa", 3, "auto")


def test_slurm_starts_one_torchrun_a_machine(slurm):
    start, calls = slurm
    assert start("streets_pipa", REAL="1").wait(timeout=60) == 0
    show, run, store = calls.read_text().splitlines()
    assert show == "scontrol show hostnames n[1-2]"
    assert "--nnodes 2 --nproc-per-node 8" in run and "--rdzv-endpoint n1:20007" in run
    assert store == "1"


def test_slurm_stops_the_ranks_and_queues_itself_again(slurm):
    start, calls = slurm
    job = start("streets_pipa", END="never")
    while "ready" not in calls.read_text():
        assert job.poll() is None
    job.send_signal(10)  # SIGUSR1, three minutes before the end
    assert job.wait(timeout=20) == 1
    assert calls.read_text().splitlines()[-1] == "scontrol requeue 7"


@pytest.mark.parametrize("who", ["SIGTERM", "another rank"])
def test_slurm_queues_itself_again_where_ranks_alone_were_told(slurm, who):
    start, calls = slurm
    assert start("streets_pipa", END=f"asked by {who}").wait(timeout=60) == 1
    assert calls.read_text().splitlines()[-1] == "scontrol requeue 7"


@pytest.mark.parametrize("end", ["fails", "asked by run.stop_after"])
def test_slurm_leaves_alone_what_failed_or_was_to_stop(slurm, end):
    start, calls = slurm
    assert start("streets_pipa", END=end).wait(timeout=60) == 1
    assert "requeue" not in calls.read_text()


def test_slurm_does_not_start_what_is_mistyped(slurm):
    start, calls = slurm
    assert start("streets_pipa", "--sede", "1", REAL="1").wait(timeout=60) == 2
    assert "srun" not in calls.read_text()


def test_kubernetes_job_is_consistent():
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    elastic = job["spec"]["elasticPolicy"]
    assert elastic["minReplicas"] <= worker["replicas"] <= elastic["maxReplicas"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"
    assert {v["name"] for v in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert job["spec"]["nprocPerNode"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert {e["name"]: e["value"] for e in container["env"]}[STORE] == "1"
    config = configured(container["command"] + container["args"])
    assert config.run.resume == "auto" and str(config.run.dir) == "/runs"
