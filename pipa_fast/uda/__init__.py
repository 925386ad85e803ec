# SPDX-License-Identifier: Apache-2.0
"""Domain adaptation: the teacher, class mixing, the objectives and the step that adds them up."""

from pipa_fast.uda.config import AdaptationConfig
from pipa_fast.uda.step import AdaptationStep
from pipa_fast.uda.teacher import Teacher

__all__ = ["AdaptationConfig", "AdaptationStep", "Teacher"]
