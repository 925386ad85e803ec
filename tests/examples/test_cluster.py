# SPDX-License-Identifier: Apache-2.0
"""The examples for clusters: what they would start is a command that pipa_fast.train takes."""

import os
import shlex
import shutil
import subprocess
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


@pytest.fixture
def slurm(tmp_path):
    """Runs the script where `scontrol` and `srun` are commands of ours."""
    for name, text in {
        "scontrol": 'echo "scontrol $*" >>"$CALLS"; [ "$1" != show ] || printf "n1\\nn2\\n"',
        "srun": "trap 'echo stopped >>\"$CALLS\"; exit 143' TERM; "  # before it is seen to run
        'echo "srun $*" >>"$CALLS"; echo "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" >>"$CALLS"; '
        'while [ -n "$LONG" ]; do sleep 0.1; done',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    job = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
    job |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "CALLS": str(calls), "LONG": ""}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def start(*words, **changes):
        command = [BASH, str(SLURM), *words]
        environment = os.environ | job | path | changes
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

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
    assert start("streets_pipa").wait(timeout=20) == 0
    show, run, store = calls.read_text().splitlines()
    assert show == "scontrol show hostnames n[1-2]"
    assert "--nnodes 2 --nproc-per-node 8" in run and "--rdzv-endpoint n1:29400" in run
    assert store == "1"


def test_slurm_stops_the_ranks_and_queues_itself_again(slurm):
    start, calls = slurm
    job = start("streets_pipa", LONG="1")
    while len(calls.read_text().splitlines()) < 3:  # the store's line is srun's last
        assert job.poll() is None
    job.send_signal(10)  # SIGUSR1, three minutes before the end
    job.wait(timeout=20)
    assert calls.read_text().splitlines()[-2:] == ["stopped", "scontrol requeue 7"]


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
