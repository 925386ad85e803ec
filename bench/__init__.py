# SPDX-License-Identifier: Apache-2.0
"""Measurements. `python -m bench` times the ops; see the modules for the rest."""
