# SPDX-License-Identifier: Apache-2.0
"""csrc/cuda/schedule.h through pipa_fast._host: what the CUDA kernels compute without a GPU."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

cuda = pytest.importorskip("pipa_fast._host").cuda

TILES = [(16, 8), (16, 16), (64, 16), (128, 64)]  # rows of a block, columns of a tile
clusters = st.integers(1, cuda.MOST_CLUSTER)
sizes_of_classes = st.lists(st.integers(1, 60), min_size=1, max_size=8)


def sorted_rows(sizes: list[int], dead: int) -> tuple[np.ndarray, list[int], list[int], int]:
    """Labels of sorted rows (-1: takes no part), where their classes begin and end, rows alive."""
    ends = np.cumsum(sizes)
    labels = np.repeat([*range(len(sizes)), -1], [*sizes, dead])
    first = np.repeat([*(ends - sizes), ends[-1]], [*sizes, dead])
    past = np.repeat([*ends, 0], [*sizes, dead])
    return labels, first.tolist(), past.tolist(), int(ends[-1])


def met_apart(n, rows, columns, first, past, all_form, live, width, cluster):
    """What programs meet: launch, block, program, shift and first column of each tile."""
    blocks = cuda.blocks_of(n, rows)
    end = cuda.past_offset(blocks, cluster)
    for launch in range(1, end, max(width, 1)):
        until = min(launch + width, end)
        for program in range(cuda.blocks_of(width, cuda.RUN)):
            offsets = cuda.offsets_of(program, launch, until)
            for block in range(cuda.blocks_of(live, rows)):
                lead = block // cluster * cluster * rows
                own = [
                    cuda.own_range(first, past, all_form, begin, begin + rows, live)
                    if begin < live
                    else (0, 0)
                    for begin in range(lead, lead + cluster * rows, rows)
                ]
                tiles = cuda.apart_tiles(rows, columns, block, blocks, offsets, own, live)
                for shift, column in tiles:
                    yield launch, block, program, shift, column


@settings(deadline=None, max_examples=40)
@given(sizes_of_classes, st.integers(0, 40), st.sampled_from(TILES), st.booleans(), clusters)
@example([10, 30], 0, (16, 8), False, 1)  # a class that ends in blocks 0 and 2, which meet around
def test_each_pair_counts_once_in_a_denominator(sizes, dead, tile, all_form, cluster):
    labels, first, past, live = sorted_rows(sizes, dead)
    (rows, columns), n = tile, len(labels)
    seen = np.zeros((n, n), int)
    width, _ = cuda.slots_of(n, rows, 8)
    known = first, past, all_form, live, width, cluster
    for _, block, _, _, column in met_apart(n, *tile, *known):
        own = slice(block * rows, min(block * rows + rows, live))
        seen[own, column : min(column + columns, live)] += 1
        seen[column : min(column + columns, live), own] += 1
    for begin in range(0, live, rows):
        own = cuda.own_range(first, past, all_form, begin, begin + rows, live)
        shared = (0, 0) if all_form else cuda.shared_range(first, past, begin, begin + rows, live)
        for part in range(cuda.PARTS):
            for column in cuda.own_tiles(own, shared, rows, columns, live, part):
                for j in range(column, min(column + columns, n)):
                    for i in range(begin, min(begin + rows, live)):
                        same = cuda.holds((first[i], past[i]), j)
                        seen[i, j] += cuda.in_denominator(all_form, same, i, j, live)
    alive = labels >= 0
    other = ~np.eye(n, dtype=bool) if all_form else labels[:, None] != labels
    assert (seen == (other & alive & alive[:, None])).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 20), clusters)
def test_blocks_around_a_circle_meet_once_and_programs_do_not_share_numbers(
    blocks, width, odd, cluster
):
    """In several launches, and with rows past the last whole block."""
    n = live = (blocks - 1) * 16 + min(odd, 16)
    alone = list(range(n)), list(range(1, n + 1))  # classes of one: blocks share none
    pairs, written = Counter(), {}
    known = *alone, False, live, width, cluster
    for launch, block, program, shift, column in met_apart(n, 16, 8, *known):
        pairs[frozenset((block, column // 16))] += 1
        slot = cuda.slot_of_shift(shift, launch)
        assert 0 <= slot < cuda.slot_of_program(0, width)
        assert written.setdefault((launch, slot, column), (block, program)) == (block, program)
    tiles = {
        True: cuda.blocks_of(n, 8) - 2 * (blocks - 1),
        False: 2,
    }  # of the last block, of others
    assert len(pairs) == blocks * (blocks - 1) // 2
    for pair, count in pairs.items():
        assert count in {tiles[block == blocks - 1] for block in pair}


@given(st.integers(1, 10**6), st.sampled_from([16, 64, 128]), st.sampled_from([8, 64, 512]))
def test_slots_are_each_for_one_thing(n, rows, columns):
    width, count = cuda.slots_of(n, rows, columns)
    programs = cuda.blocks_of(width, cuda.RUN)
    shifts = range(5 - (cuda.MOST_CLUSTER - 1), 5 + width)  # of a launch from offset 5 on
    slots = [cuda.slot_of_shift(shift, 5) for shift in shifts]
    slots += [cuda.slot_of_program(program, width) for program in range(programs)]
    slots += [cuda.slot_of_part(part, width) for part in range(cuda.PARTS)]
    assert slots == list(range(count))
    assert width <= max(columns, cuda.RUN)
    offsets = [cuda.offsets_of(program, 1, width + 1) for program in range(programs)]
    assert [o for low, high in offsets for o in range(low, high)] == list(range(1, width + 1))


@settings(deadline=None, max_examples=60)
@given(sizes_of_classes, st.integers(0, 20), st.sampled_from(TILES), st.integers(0, 10**6))
def test_positives_of_a_block_lie_in_its_classes(sizes, dead, tile, at):
    labels, first, past, live = sorted_rows(sizes, dead)
    rows, columns = tile
    begin = at % live // rows * rows
    own = cuda.own_range(first, past, False, begin, begin + rows, live)
    parts = [
        cuda.own_tiles(own, (0, 0), columns, columns, live, part) for part in range(cuda.PARTS)
    ]
    tiles = sorted(column for part in parts for column in part)
    for i in range(begin, min(begin + rows, live)):
        found = [
            j
            for column in tiles
            for j in range(column, column + columns)
            if cuda.is_positive(cuda.holds((first[i], past[i]), j), i, j)
        ]
        assert found == [j for j in np.flatnonzero(labels == labels[i]) if j != i]


@settings(deadline=None, max_examples=60)
@given(sizes_of_classes, st.integers(0, 20), st.sampled_from(TILES), st.integers(0, 10**6))
@example([10, 400, 10], 0, (16, 8), 100)
@example([10, 403], 0, (16, 8), 100)  # rows that take part end within a tile
def test_a_tile_of_own_columns_is_met_where_some_row_has_a_negative(sizes, dead, tile, at):
    """And parts share them: none has two tiles more than another."""
    labels, first, past, live = sorted_rows(sizes, dead)
    rows, columns = tile
    begin = at % live // rows * rows
    known = begin, begin + rows, live
    own, shared = cuda.own_range(first, past, False, *known), cuda.shared_range(first, past, *known)
    parts = [cuda.own_tiles(own, shared, rows, columns, live, part) for part in range(cuda.PARTS)]
    mine = set(labels[begin : min(begin + rows, live)])
    end = min(-(-own[1] // rows) * rows, live)
    wanted = [
        column
        for column in range(own[0] // rows * rows, end, columns)
        if len(mine | set(labels[column : min(column + columns, live)])) > 1
    ]
    assert sorted(column for part in parts for column in part) == wanted
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(0, 3000), st.sampled_from([16, 32, 64]), st.integers(1, 64))
def test_shares_hold_each_key_once(keys, columns, splits):
    shares = [cuda.keys_of(split, splits, keys, columns) for split in range(splits)]
    assert [k for low, high in shares for k in range(low, high)] == list(range(keys))
    assert all(low % columns == 0 for low, _ in shares)
    tiles = [-(-(high - low) // columns) for low, high in shares]
    assert max(tiles) - min(tiles) <= 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=6),
    st.sampled_from([8, 16]),
    st.integers(1, 4),
)
def test_a_tile_of_keys_is_skipped_where_no_anchor_wants_it(sizes, columns, splits):
    """Classes of anchors without keys, and of keys without anchors, included."""
    anchors = np.repeat(range(len(sizes)), [count for count, _ in sizes])
    labels = np.repeat(range(len(sizes)), [count for _, count in sizes])
    first, past = (np.searchsorted(labels, anchors, side).tolist() for side in ("left", "right"))
    for begin in range(0, len(anchors), 16):
        shared = cuda.shared_range(first, past, begin, begin + 16, len(anchors))
        mine = set(anchors[begin : begin + 16])
        for split in range(splits):
            share = cuda.keys_of(split, splits, len(labels), columns)
            wanted = [
                column
                for column in range(*share, columns)
                if len(mine | set(labels[column : min(column + columns, share[1])])) > 1
            ]
            assert cuda.key_tiles(columns, share, shared) == wanted


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(1, 50))
def test_ranges(low, size, begin, length):
    own, tile = range(low, low + size), range(begin, begin + length)
    assert [k for k in range(120) if cuda.holds((low, low + size), k)] == list(own)
    if size:
        met = cuda.meets((low, low + size), begin, begin + length)
        assert met == bool(set(own) & set(tile))
    assert cuda.is_negative(False, begin, begin) is False
    assert cuda.is_negative(False, begin, begin + 1) and not cuda.is_negative(True, begin, 99)


def test_pieces_are_swapped_within_a_line_and_eight_rows_use_all_banks():
    for row in range(16):
        for line in range(16):
            pieces = range(8 * line, 8 * line + 8)
            offsets = [cuda.swapped(row, piece) for piece in pieces]
            assert sorted(offsets) == [16 * piece for piece in pieces]
            for half in (0, 1):
                found = [cuda.piece_at(row, half, pair) for pair in range(4 * line, 4 * line + 4)]
                assert found == offsets[half::2]
    for piece in range(128):  # of 128 bytes: all 32 banks
        banks = {cuda.swapped(row, piece) % 128 // 16 for row in range(8, 16)}
        assert len(banks) == 8


def test_lanes_hold_each_place_of_a_fragment_once():
    """As PTX lays out the result of mma.m16n8: pairs of columns, rows eight apart."""
    places = [
        (cuda.fragment_row(lane, 1, i // 2) - 16, cuda.fragment_column(lane, 2, i) - 16)
        for lane in range(32)
        for i in range(4)
    ]
    assert sorted(places) == [(row, column) for row in range(16) for column in range(8)]
    assert places[4 * 5 : 4 * 6] == [(1, 2), (1, 3), (9, 2), (9, 3)]  # lane 5


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match="begin"):
        cuda.own_range([0], [1], False, 1, 2, 1)
    with pytest.raises(ValueError, match="first and past"):
        cuda.own_range([0], [1], False, 0, 2, 2)
    with pytest.raises(ValueError, match="multiple"):
        cuda.apart_tiles(16, 7, 0, 1, (1, 1), [(0, 1)], 1)
