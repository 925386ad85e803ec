# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from pipa_fast.models import Window


def test_a_window_is_a_view_on_pixels_and_on_cells():
    pixels = torch.arange(64 * 64).view(1, 64, 64)
    inside = Window(8, 16, 24, 48).of(pixels)
    assert inside.shape == (1, 16, 32) and int(inside[0, 0, 0]) == 8 * 64 + 16
    cells = torch.zeros(1, 2, 8, 8)
    Window(8, 16, 24, 48).of(cells, 8).add_(1)
    assert int(cells.sum()) == 2 * 2 * 4


@pytest.mark.parametrize("window", [(0, 0, 0, 8), (-8, 0, 8, 8), (0, 0, 72, 8), (0, 4, 8, 12)])
def test_a_window_off_the_grid_or_outside_is_told(window):
    with pytest.raises(ValueError, match="window"):
        Window(*window).of(torch.zeros(8, 8), 8)
