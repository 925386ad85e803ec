# SPDX-License-Identifier: Apache-2.0
"""Configuration, the loop, distributed set-up, checkpoints, schedules and logs."""
