# SPDX-License-Identifier: Apache-2.0
"""Peers of `uda.teacher.Teacher.update`."""

from torch import Tensor

from bench.peers import Peer
from pipa_fast.models import SegmentationNetwork
from pipa_fast.uda.teacher import Teacher, momentum

PER_PARAMETER = "the lineage's way: new data for one parameter after another"


def loop(
    features: Tensor, *, teacher: Teacher, student: SegmentationNetwork, iteration: int
) -> list[Tensor]:
    """Average each parameter by three operators, and copy the result in."""
    keep = momentum(iteration, teacher.ceiling)
    theirs = dict(student.named_parameters())
    mine = list(teacher.network.named_parameters())
    for name, parameter in mine:
        parameter.data[:] = keep * parameter.data[:] + (1 - keep) * theirs[name].data[:]
    return [parameter for _, parameter in mine]


PEERS = {"lineage": Peer("loop over parameters", PER_PARAMETER, lambda: loop, 12)}
