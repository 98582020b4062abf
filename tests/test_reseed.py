"The tool that changes half of a notebook's seeds: which it finds, which it changes, what it says."
import pytest

nbformat = pytest.importorskip("nbformat")
reseed = pytest.importorskip("reseed")

SOURCES = ["a = torch.manual_seed(3); b = seeded(4); c = seeded(1000 + t)",
           "def seeded(seed=0): return torch.Generator().manual_seed(seed)",
           "d = draw(5, seed=4) + np.random.default_rng(7).normal(); e = seed == 12"]


def notebook():
    v4 = nbformat.v4
    return v4.new_notebook(cells=[v4.new_markdown_cell("manual_seed(99)"),
                                  *map(v4.new_code_cell, SOURCES)])


def test_every_seed_is_found_and_nothing_else():
    assert reseed.numbers(notebook()) == [0, 3, 4, 7, 1000]


def test_half_of_them_change_the_same_ones_each_time_and_equal_ones_alike():
    changed = set()
    for seed in range(30):
        one, two = notebook(), notebook()
        new = reseed.reseed(one, seed)
        assert new == reseed.reseed(two, seed) and [c.source for c in one.cells] == [
            c.source for c in two.cells]
        assert len(new) == 3 and set(new) < {0, 3, 4, 7, 1000} and min(new.values()) >= 10**4
        text = "\n".join(c.source for c in one.cells)
        assert text.count(f"seeded({new.get(4, 4)})") == text.count(f"seed={new.get(4, 4)})") == 1
        assert "manual_seed(99)" in text and "seed == 12" in text and "manual_seed(seed)" in text
        changed |= set(new)
    assert changed == {0, 3, 4, 7, 1000}               # each of them, in one run or another


def test_a_check_that_fails_is_reported_and_the_cells_after_it_still_run(tmp_path):
    pytest.importorskip("ipykernel")
    cells = ["x = 1", "x = 2\nassert x == 1, 'by luck'", "print(x); assert x == 2", "1 / 0"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    first, second = reseed.failures(nb, tmp_path)
    assert f"cell {nb.cells[1].id}: AssertionError: by luck" in first and "assert x == 1" in first
    assert "ZeroDivisionError" in second
