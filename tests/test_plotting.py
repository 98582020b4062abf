"""The figures: what is drawn is what was given, and each picture carries its description."""
import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm_nb.plotting
from ddpm_nb.plotting import (CYCLE, DATA, MODEL, NOISE, PALETTE, Picture, animate, axes, color_of,
                              image_grid, lines, save_grid, scatter, show_images, show_strip)


def images(n=5, c=1, size=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, c, size, size), dtype=torch.uint8, generator=g)


def frames_of(picture):
    film = Image.open(io.BytesIO(picture.data))
    for i in range(film.n_frames):
        film.seek(i)
        yield np.asarray(film.convert("RGB"))


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("ncols, scale, pad", [(2, 1, 1), (5, 3, 0), (None, 2, 4)])
def test_each_image_lies_in_the_grid_pixel_for_pixel_in_reading_order(c, ncols, scale, pad):
    x = images(5, c)
    grid, step, columns = image_grid(x, ncols, scale, pad), 4 * scale + pad, ncols or 3
    for i in range(5):
        top, left = i // columns * step, i % columns * step
        tile = grid[top:top + 4 * scale:scale, left:left + 4 * scale:scale]
        assert (tile == x[i].permute(1, 2, 0).numpy()).all()
    rows = -(-5 // columns)
    assert grid.shape == (rows * step - pad, columns * step - pad, c)
    assert (grid[4 * scale:step] == 222).all()                            # between two rows
    if 5 % columns: assert (grid[(rows - 1) * step:, 5 % columns * step:] == 255).all()


def test_bytes_and_the_floats_that_stand_for_them_give_the_same_grid():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert (image_grid(x) == image_grid(x.double() / 127.5 - 1)).all()
    assert (image_grid(x) == image_grid((x.float() / 127.5 - 1).numpy())).all()


def test_values_outside_the_range_are_clipped_and_what_is_no_number_is_grey():
    x = torch.tensor([-7.0, 7.0, float("nan"), float("inf")]).reshape(4, 1, 1, 1)
    assert image_grid(x, ncols=4, pad=0).ravel().tolist() == [0, 255, 128, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_dtype_is_drawn(dtype):
    assert (image_grid(torch.zeros(1, 1, 2, 2, dtype=dtype, requires_grad=True)) == 128).all()


@pytest.mark.parametrize("shape, dtype", [
    ((2, 2, 4, 4), torch.float32), ((4, 4), torch.float32), ((0, 1, 4, 4), torch.float32),
    ((1, 1, 4, 4), torch.long)])
def test_what_is_no_batch_of_images_is_refused_with_what_is_allowed(shape, dtype):
    with pytest.raises(ValueError, match="images must"): image_grid(torch.zeros(shape, dtype=dtype))


def test_a_saved_grid_reads_back_as_it_was(tmp_path):
    path = save_grid(images(6, 3), tmp_path / "new folder" / "grid.png", ncols=3)
    assert (np.asarray(Image.open(path)) == image_grid(images(6, 3), 3)).all()
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_a_picture_file_is_whole_or_absent(tmp_path, monkeypatch):
    "When the disk is full half-way, what was there before stays, and nothing else."
    def fill_up(path, data):
        with path.open("wb") as f: f.write(data[:10])
        raise OSError(28, "No space left on device")
    path = save_grid(images(), tmp_path / "grid.png")
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", fill_up)
    for target in (path, tmp_path / "new.png"):
        with pytest.raises(OSError, match="No space"): save_grid(images(6), target)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("n, size", [(1, 8), (3, 32), (20, 16), (64, 32), (7, 64)])
def test_shown_images_fit_the_page_and_end_in_the_pixels_that_were_given(n, size):
    x = images(n, 3, size)
    shown = show_images(x, title="A title that says what to notice").array()
    assert shown.shape[1] <= 760
    bare = show_images(x).array()
    assert (shown[-bare.shape[0]:, :bare.shape[1]] == bare).all()


def test_a_strip_has_its_rows_one_under_the_other():
    a, b = images(4, 1, 8, 0), images(4, 1, 8, 1)
    both = show_strip([a, b], scale=2).array()
    alone = [show_strip([x], scale=2).array() for x in (a, b)]
    assert (both[:16] == alone[0]).all() and (both[-16:] == alone[1]).all()


def test_labels_that_do_not_fit_the_strip_are_refused():
    for labels, said in ((dict(col_labels=["one"]), "col_labels must have 4"),
                         (dict(row_labels=["a", "b"]), "row_labels must have 1")):
        with pytest.raises(ValueError, match=said): show_strip([images(4)], **labels)
    with pytest.raises(ValueError, match="one shape"): show_strip([images(4), images(3)])


def test_the_description_goes_where_a_page_looks_for_it():
    still = show_images(images(), title="Five", alt="five  small\nimages")
    film = animate([images(), images()], alt="five small images")
    for picture, mime in ((still, "image/png"), (film, "image/gif")):
        data, metadata = picture._repr_mimebundle_()
        assert metadata[mime]["alt"] == "five small images" and mime in data
    assert "Five" in show_images(images(), title="Five").alt


def test_noise_data_and_model_have_one_colour_each_by_name():
    assert [color_of(n) for n in ("noise", "Data", "MODEL")] == [NOISE, DATA, MODEL]
    assert color_of("something else", len(CYCLE)) == CYCLE[0]
    assert len(set(PALETTE.values())) == len(PALETTE)


def colours(picture):
    return {tuple(p) for p in picture.array().reshape(-1, 3)}


def near(picture, colour, tolerance=10):
    want = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)])
    return min(np.abs(np.array(c) - want).max() for c in colours(picture)) <= tolerance


def test_a_curve_is_drawn_in_the_colour_of_its_name():
    y = np.arange(9.0)
    model, data = (lines(None, {name: y}, "x", "y") for name in ("model", "data"))
    assert near(model, MODEL) and not near(data, MODEL)
    cloud = np.random.default_rng(0).normal(size=(500, 2))
    assert near(scatter({"noise": cloud}, alpha=1), NOISE)


@pytest.fixture
def drawn(monkeypatch):
    "The axes of each figure from here on."
    real, found = ddpm_nb.plotting.axes, []
    @contextlib.contextmanager
    def spy(*words, **options):
        with real(*words, **options) as ax:
            found.append(ax)
            yield ax
    monkeypatch.setattr(ddpm_nb.plotting, "axes", spy)
    return found


def test_curves_take_their_own_x_logarithms_points_and_bands(drawn):
    y = torch.linspace(1, 10, 20)
    picture = lines(y, {"a": y, "b": (y[::2], y[::2] ** 2)}, "x", "y", logx=True, logy=True,
                    points=["b"], dashed=["a"], bands={"a": (y * 0.9, y * 1.1)},
                    xlim=(1, 10), ylim=(0.5, 200))
    assert picture.array().shape == (340, 720, 3)
    (ax,), (a, b) = drawn, drawn[0].lines
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlim(), ax.get_ylim()) == ((1, 10), (0.5, 200))
    assert a.is_dashed() and not b.is_dashed()
    assert b.get_marker() == "o" and b.get_linestyle() == "None"
    assert np.allclose(b.get_xdata(), y[::2]) and np.allclose(b.get_ydata(), y[::2] ** 2)
    assert len(ax.collections) == 1
    with pytest.raises(ValueError, match="no curve 'c'; there are 'a'"):
        lines(y, {"a": y}, "x", "y", points=["c"])
    with pytest.raises(ValueError, match=r"shape \(N, 2\)"): scatter({"a": torch.zeros(3, 3)})


@pytest.mark.parametrize("limits, want", [(3, (-3, 3)), ((-1, 4), (-1, 4)), (None, (-4, 2))])
def test_clouds_lie_side_by_side_or_in_one_place_and_both_axes_have_one_scale(drawn, limits, want):
    clouds = {"a": np.array([[-4.0, 0], [1, 1]]), "b": np.array([[0.0, 2], [1, -1]])}
    for panels in (True, False): scatter(clouds, panels=panels, limits=limits)
    side_by_side, one = drawn
    assert len(side_by_side) == 2
    for ax, inside in zip((*side_by_side, one), (["a"], ["b"], ["a", "b"]), strict=True):
        assert ax.get_aspect() == 1 and ax.get_xlim() == ax.get_ylim() == want
        for dots, name in zip(ax.collections, inside, strict=True):
            assert (dots.get_offsets() == clouds[name]).all()


def test_axes_leave_matplotlib_as_it_was(tmp_path):
    import matplotlib
    before = dict(matplotlib.rcParams)
    with axes("title", "x", "y", ncols=2, path=tmp_path / "figure.png") as ax:
        for a in ax: a.plot([0, 1])
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert ax[0].figure.picture.alt == "title: y against x"


def test_an_animation_shows_every_frame_as_it_is():
    frames = [images(4, 1, 8, seed) for seed in range(5)]
    film = animate(frames, scale=1)
    for shown, frame in zip(frames_of(film), frames, strict=True):
        assert (shown[..., :1] == image_grid(frame, pad=2)).all()


@pytest.mark.parametrize("at", range(0, 24, 5))
@pytest.mark.parametrize("others", ["grey", "colours"])
def test_one_frame_of_another_colour_keeps_it(at, others):
    frames = [np.full((1, 3, 8, 8), 10 * i, np.uint8) for i in range(24)]
    if others == "colours":
        for f in frames: f[:, 1] = 30
    frames[at][:] = np.array([0, 0, 255], np.uint8)[:, None, None]
    shown = list(frames_of(animate(frames, scale=1)))[at]
    assert (np.abs(shown[4, 4].astype(int) - (0, 0, 255)) <= 8).all()


def test_a_color_for_each_cloud_or_none_at_all():
    with pytest.raises(ValueError): scatter(dict(a=np.zeros((2, 2)), b=np.ones((2, 2))),
                                            color=["red"])


def test_a_long_animation_is_thinned_below_the_limit_and_keeps_its_first_and_last_frame():
    frames = [images(4, 1, 16, seed) for seed in range(40)]
    whole, thin = (animate(frames, scale=2, max_bytes=limit) for limit in (10**9, 60_000))
    assert len(whole.data) > 60_000 >= len(thin.data)
    kept, all_frames = list(frames_of(thin)), list(frames_of(whole))
    assert len(all_frames) == 40 and 2 < len(kept) < 40
    assert (kept[0] == all_frames[0]).all() and (kept[-1] == all_frames[-1]).all()


def durations(film):
    "Milliseconds of each frame; a GIF counts in hundredths of a second."
    for i in range(film.n_frames):
        film.seek(i)
        yield film.info["duration"]


def test_a_film_has_twelve_frames_a_second_and_holds_the_last_for_one_and_a_half():
    film = Image.open(io.BytesIO(animate([images(4, 1, 8, seed) for seed in range(3)]).data))
    assert list(durations(film)) == [80, 80, 1500]


@pytest.mark.parametrize("limit", [10**9, 60_000])
def test_a_film_keeps_its_pace_when_frames_are_left_out_and_holds_the_last(limit):
    frames = [images(4, 1, 16, seed) for seed in range(40)]
    film = Image.open(io.BytesIO(animate(frames, scale=2, fps=10, hold=2, max_bytes=limit).data))
    times = list(durations(film))
    assert times[-1] == 2000 and len({*times[:-1]}) == 1
    assert 3900 <= sum(times[:-1]) < 3900 + times[0]            # 39 frames of a tenth of a second


def test_an_animation_refuses_words_it_does_not_know():
    with pytest.raises(TypeError, match="animate without draw takes no lables, fsp"):
        animate([torch.zeros(1, 1, 8, 8)], lables=["a"], fsp=3)


def test_an_animation_of_drawings(tmp_path):
    path = tmp_path / "film.gif"
    film = animate(range(3), draw=lambda ax, i: ax.plot([0, i]), labels=list("abc"), path=path)
    assert isinstance(film, Picture) and path.read_bytes() == film.data
    assert len(list(frames_of(film))) == 3
    with pytest.raises(ValueError, match="labels must have 3"):
        animate(range(3), draw=print, labels=["a"])
    with pytest.raises(ValueError, match="no frames"): animate([])


def test_pictures_are_the_same_bytes_each_time():
    draw = lambda: (show_images(images(), title="t"), lines(None, {"a": np.arange(5.0)}, "x", "y"),
                    animate([images()] * 3))
    assert [p.data for p in draw()] == [p.data for p in draw()]


def test_importing_the_module_imports_neither_matplotlib_nor_pillow_nor_torch():
    folder = Path(ddpm_nb.plotting.__file__).parent
    heavy = "{'matplotlib', 'PIL', 'torch'} & set(sys.modules)"
    code = f"import sys, plotting; sys.exit(', '.join({heavy}) or 0)"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


@pytest.mark.parametrize("wrong", [{"ncols": 0}, {"ncols": 1.5}, {"scale": 0}, {"scale": 1.5},
                                   {"pad": -1}], ids=str)
def test_a_grid_refuses_in_words_what_makes_none(wrong):
    with pytest.raises(ValueError, match=f"{[*wrong][0]} must be a whole number"):
        image_grid(np.zeros((2, 1, 4, 4), np.uint8), **wrong)
