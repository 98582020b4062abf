"""The live parts of the site, in a real browser: their numbers against Python's, every control by
mouse, touch and keyboard, no request, no complaint, on a telephone, light and dark."""
import base64
import io
import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_site import BUILD, DOCS, ROOT, WITHOUT_BROWSER, url

from browser import LIGHT, browser
from ddpm_nb import GaussianDiffusion, Mixture, NoiseSchedule, load_pretrained
from ddpm_nb import objective, sampling, schedules
from ddpm_nb.data import digits, swiss_roll, to_model

live = BUILD.live
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in str(p))
# what the page offers, as far as Python has it
SPACINGS = list(schedules.SPACINGS)
OFFERED = [n for n in ("even", "log_snr", "between") if n in SPACINGS]


def texts(path, kind):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == kind]


def gifs(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/gif" in output.get("data", {}):
                yield base64.b64decode("".join(output["data"]["image/gif"]))


# --- what is written ------------------------------------------------------------------------------

def test_the_scripts_on_the_site_are_those_that_the_sources_and_the_weights_make():
    for name, text in (("live.js", live.script()), ("live-digits.js", live.network())):
        assert (DOCS / "_static" / name).read_text(encoding="utf-8") == text, name


def test_the_weights_in_the_page_are_the_packaged_file_byte_by_byte():
    given = json.loads(live.network().partition(" = ")[2].rstrip(";\n"))
    folder = ROOT / "ddpm_nb" / "assets" / "digits" / "unet"
    kept = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    assert base64.b64decode(given["weights"]) == kept
    shown = np.frombuffer(base64.b64decode(given["digits"]), np.uint8).reshape(-1, 1, 16, 16)
    assert len(shown) == given["count"] and (shown == digits(train=False)[0][:10].numpy()).all()


def test_every_module_is_in_the_script_and_the_model_is_short():
    sources = {p.name: p.read_text(encoding="utf-8") for p in live.SOURCES.glob("*.js")}
    assert live.modules() == sources
    lines = lambda name: len(sources[name].strip().split("\n"))
    assert sum(map(lines, ("layers.js", "unet.js", "samplers.js", "multistep.js"))) <= 370
    wide = [o for text in sources.values() for o in text.split("\n") if len(o) > 100]
    assert not wide, wide


def test_a_line_that_is_a_link_to_a_module_becomes_the_module_and_no_other_line_does():
    link = "[random.js](../_live/random.js)"
    assert live.listed(f"a\n\n{link}\n\nb").startswith("a\n\n```javascript\n// Standard normal")
    assert live.listed(f"see {link}") == f"see {link}"


def test_the_argument_is_short_and_shows_no_code_but_the_two_loops():
    path = ROOT / "nbs" / "argument.ipynb"
    prose = re.sub(r"\$\$.*?\$\$|<[^>]+>", " ", "\n".join(texts(path, "markdown")), flags=re.S)
    assert len(prose.split()) <= 900
    shown = [c for c in texts(path, "code") if not c.startswith("#|")]
    assert len(shown) == 2 and all(re.search(r"^for ", c, flags=re.M) for c in shown)


def test_a_film_has_the_frames_of_the_gif(tmp_path):
    "Frame by frame, pixel by pixel: five frames in rows of three."
    frames = [Image.new("RGB", (1300, 9), (40 * i, 0, 200)) for i in range(5)]
    file = io.BytesIO()
    times = [80, 80, 80, 80, 1500]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    said = live.film(file.getvalue(), 'a "film"', tmp_path, "../films")
    (name,) = (p.name for p in tmp_path.iterdir())
    for part in (f'src="../films/{name}"', 'alt="a &quot;film&quot;"', 'data-frames="5"',
                 'data-columns="3"', 'data-duration="80"', 'data-hold="1500"'):
        assert part in said, part
    sheet = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert sheet.shape == (18, 3900, 3)
    for i, frame in enumerate(frames):
        part = sheet[i // 3 * 9:, i % 3 * 1300:][:9, :1300]
        assert np.abs(part.astype(int) - np.asarray(frame)).max() <= 1      # a GIF has a palette


def test_every_animation_of_the_book_is_a_film_on_the_site():
    pages = [p for p in NOTEBOOKS if p.stem != "index"]
    found = {p: len(list(gifs(p))) for p in pages}
    assert sum(found.values()) > 5
    for path, count in found.items():
        page = DOCS / path.relative_to(ROOT / "nbs").with_suffix(".html")
        assert page.read_text(encoding="utf-8").count('data-live="player"') == count, page.name
    assert not list((DOCS / "_images").glob("*.gif"))


def test_no_page_is_heavy_with_all_that_it_loads():
    "The weights count too, for a page that has a use for them."
    shared = (DOCS / "_static" / "live-digits.js").stat().st_size
    assert shared < 1.3e6
    for page in DOCS.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        films = re.findall(r'src="([^"]+/films/[^"]+)"', text)
        pictures = re.findall(r'src="([^"]*_images/[^"]+)"', text)
        own = sum((page.parent / o).stat().st_size for o in films + pictures)
        own += len(text.encode()) + shared * bool(re.search('data-live="(digits|guesses)"', text))
        assert own < 3e6, f"{page.name}: {own / 1e6:.1f} MB"


def test_each_place_says_what_stands_there_where_nothing_moves():
    "In JupyterLab, on GitHub, and without JavaScript."
    places = [o for p in NOTEBOOKS for text in texts(p, "markdown")
              for o in re.findall(r'<div class="live"[^>]*>(.*?)</div>', text, flags=re.S)]
    assert len(places) >= 8
    assert all(re.search(r"<p>\(On the site .{30,}</p>", o) for o in places)


# --- its numbers ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def page():
    with browser() as p: yield p


@pytest.fixture(scope="module")
def console(page):
    "The page of the code, whose console has all the functions."
    page.appearance("light")
    page.open(url("appendix/live.html"))
    return page


@pytest.fixture(scope="module")
def trained():
    net, d = load_pretrained("digits")
    return net.requires_grad_(False), d


def floats(x): return json.dumps([float(v) for v in x.flatten()])


def far(a, b): return (torch.tensor(a, dtype=torch.float64) - b.flatten().double()).abs().max()


SAMPLE = """(async () => {
  const {model, scheduler} = await ddpm.network();
  const noises = %(noises)s, d = ddpm.diffusion(scheduler, %(steps)s, "%(spacing)s");
  const randn = () => Float32Array.from(noises.shift());
  let last;
  for (const state of ddpm.SAMPLERS["%(sampler)s"](d, model, randn(), randn, %(eta)s)) last = state;
  return [[...last.x], noises.length];
})()"""

RUNS = [("ddpm", 12, 0), ("ddim", 1, 0), ("ddim", 9, 0), ("ddim", 9, 0.7), ("dpm++", 2, 0),
        ("dpm++", 9, 0), ("unipc", 1, 0), ("unipc", 2, 0), ("unipc", 9, 0), ("unipc", 40, 0),
        ("adams", 1, 0), ("adams", 2, 0), ("adams", 4, 0), ("adams", 9, 0), ("adams", 40, 0)]


@WITHOUT_BROWSER
@pytest.mark.parametrize("spacing", OFFERED)
@pytest.mark.parametrize("sampler, steps, eta", RUNS)
def test_a_sample_in_the_page_is_pythons_from_the_same_noise(console, trained, sampler, steps, eta,
                                                             spacing):
    net, d = trained
    g = torch.Generator().manual_seed(steps)
    noises = [torch.randn(1, 1, 16, 16, generator=g) for _ in range(steps)]    # in their order
    g.manual_seed(steps)
    more = {"eta": eta} if eta else {}
    more["spacing"] = spacing
    x = d.sample(net, (1, 1, 16, 16), sampler, steps=steps, generator=g, progress=False, **more)
    given = "[" + ",".join(map(floats, noises)) + "]"
    found, left = console.js(SAMPLE % dict(noises=given, steps=steps, sampler=sampler, eta=eta,
                                           spacing=spacing))
    assert far(found, x) < 1e-4
    assert left == (0 if sampler == "ddpm" or eta else steps - 1)    # as much noise as in Python
    assert not console.complaints


@WITHOUT_BROWSER
def test_the_network_in_the_page_answers_as_in_python_at_both_ends_and_between(console, trained):
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    for t in (0, 1, 500, 999):
        found = console.js("ddpm.network().then(({model}) => [...model(Float32Array.from("
                           f"{floats(x)}), {t})])")
        assert far(found, trained[0](x, torch.tensor([t]))) < 1e-5


@WITHOUT_BROWSER
def test_all_samplers_and_spacings_that_the_page_offers_are_compared(console):
    offered = console.js("[Object.keys(ddpm.SAMPLERS), Object.keys(ddpm.SPACINGS), ddpm.BEST]")
    assert set(offered[0]) == {name for name, _, _ in RUNS} == set(offered[2])
    assert [n for n in offered[1] if n in SPACINGS] == OFFERED
    assert offered[2] == {name: sampling._SPACINGS[name] for name in offered[0]}


@WITHOUT_BROWSER
@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
@pytest.mark.parametrize("T", [10, 1000])
def test_the_tables_and_the_weights_of_a_schedule_are_pythons(console, name, T):
    takes = {"linear": (3e-4, 0.03), "quadratic": (3e-4, 0.03), "constant": (0.03,)}.get(name, ())
    s = schedules.SCHEDULES[name](T, *takes)
    found = console.js(f"""(() => {{
      const s = ddpm.schedule(ddpm.SCHEDULES["{name}"]({T}, 3e-4, 0.03));
      const out = {{large: ddpm.weights(s, "fixed_large"), small: ddpm.weights(s, "fixed_small")}};
      for (const key of ["betas", "alphaBars", "sigmas2", "logSnr"]) out[key] = s[key];
      return Object.fromEntries(Object.entries(out).map(([k, v]) => [k, [...v].map(String)]));
    }})()""")
    read = lambda key: torch.tensor([float(v.replace("Infinity", "inf")) for v in found[key]],
                                    dtype=torch.float64)
    expected = {"betas": s.betas, "alphaBars": s.alpha_bars, "sigmas2": s.one_minus_alpha_bars,
                "logSnr": s.log_snr}
    for key, variance in (("large", "fixed_large"), ("small", "fixed_small")):
        expected[key] = objective.ReverseProcess(s, "x0", variance).eps_weights
    for key, table in expected.items():
        torch.testing.assert_close(read(key), table, rtol=1e-9, atol=1e-14, msg=lambda m: key + m)


@WITHOUT_BROWSER
@pytest.mark.parametrize("spacing", OFFERED)
def test_a_schedule_in_fewer_steps_is_pythons(console, spacing):
    for name in ("linear", "jsd"):
        for steps in (1, 2, 7, 10, 400, 1000):
            found = console.js(f"""(() => {{
              const s = ddpm.schedule(ddpm.SCHEDULES.{name}(1000, 1e-4, 0.02));
              const {{betas, timesteps}} = ddpm.respaced(s, {steps}, "{spacing}");
              return [[...timesteps], [...betas]];
            }})()""")
            s = schedules.SCHEDULES[name](1000).respaced(steps, spacing)
            assert found[0] == s.timesteps.tolist()
            assert far(found[1], s.betas) < 1e-12


@WITHOUT_BROWSER
@pytest.mark.parametrize("name", ["swiss roll", "ring", "grid"])
def test_particles_are_led_by_the_exact_score(console, name):
    "The ideal denoiser of chapter 4, in Python, leads them to the same places."
    found = console.js(f'[ddpm.MIXTURES["{name}"].centres, ddpm.MIXTURES["{name}"].std]')
    mixture = Mixture(torch.tensor(found[0], dtype=torch.float64), found[1])
    if name == "swiss roll":                           # the same as those of chapter 7
        bare = swiss_roll(20_000, torch.Generator().manual_seed(0), 0.0).double()
        apart = torch.cdist(mixture.means, bare)
        assert mixture.std == 0.05 and apart.min(1).values.max() < 0.01
        assert apart.min(0).values.max() < 0.07
    else:
        made = {"ring": Mixture.ring, "grid": Mixture.grid}[name]()
        apart = torch.cdist(made.means.double(), mixture.means)
        assert made.std == mixture.std and len(made.means) == len(mixture.means)
        assert max(apart.min(0).values.max(), apart.min(1).values.max()) < 1e-6
    d = GaussianDiffusion(NoiseSchedule.linear(), decoder="gaussian")
    g = torch.Generator().manual_seed(3)
    x = torch.randn(20, 2, generator=g)
    ideal = objective.IdealDenoiser(d, mixture.means, mixture.std)
    expected = d.sample(ideal, (20, 2), "ddim", steps=25, noise=x, clip=False, progress=False)
    paper = {"beta_schedule": "linear", "num_train_timesteps": 1000, "beta_start": 1e-4,
             "beta_end": 0.02, "prediction_type": "epsilon", "clip_sample": False}
    answer = console.js(f"""(() => {{
      const model = ddpm.idealDenoiser(ddpm.MIXTURES["{name}"],
                                       ddpm.diffusion({json.dumps(paper)}).schedule);
      const d = ddpm.diffusion({json.dumps(paper)}, 25);
      let last;
      for (last of ddpm.SAMPLERS.ddim(d, model, Float32Array.from({floats(x)}))) {{}}
      return [...last.x];
    }})()""")
    assert far(answer, expected) < 1e-4


@WITHOUT_BROWSER
def test_the_noise_of_the_page_is_standard_normal_and_depends_on_its_seed(console):
    n = 40_000
    draw = lambda seed: torch.tensor(console.js(f"[...ddpm.normals({seed})({n})]")).double()
    a, b = draw(1), draw(2)
    bound = lambda variance: 5 * (variance / n) ** 0.5        # five standard errors
    for x in (a, b):
        assert abs(x.mean()) < bound(1) and abs(x.square().mean() - 1) < bound(2)
        assert abs((x**4).mean() - 3) < bound(96)
        assert abs((x[1:] * x[:-1]).mean()) < bound(1)
    assert abs((a * b).mean()) < bound(1) and (draw(1) == a).all()


# --- under the hand -------------------------------------------------------------------------------

class Hand:
    "Mouse, touch and keyboard, on the live part of a page that a selector names."
    def __init__(self, page, name, selector, width=1200):
        self.page, self.part = page, f"document.querySelector('{selector}')"
        page.open(url(name))
        page.resize(width, 900)

    def js(self, expression): return self.page.js(f"(part => {expression})({self.part})")

    def middle(self, selector, share=0.5):
        return self.page.js(f"""(e => {{
          e.scrollIntoView({{block: "center", behavior: "instant"}});
          const r = e.getBoundingClientRect();
          return [r.x + {share} * r.width, r.y + r.height / 2];
        }})({self.part}.querySelector('{selector}'))""")

    def click(self, selector, share=0.5):
        x, y = self.middle(selector, share)
        for kind in ("mousePressed", "mouseReleased"):
            self.page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                           clickCount=1)

    def touch(self, selector, share=0.5):
        x, y = self.middle(selector, share)
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            self.page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    def key(self, selector, name, code):
        self.js(f"part.querySelector('{selector}').focus()")
        text = {"text": " "} if name == " " else {}
        for kind in ("keyDown", "keyUp"):
            self.page.call("Input.dispatchKeyEvent", type=kind, key=name, code=name,
                           windowsVirtualKeyCode=code, **(text if kind == "keyDown" else {}))

    def done(self, count):
        self.page.wait(f"+({self.part}.dataset.done ?? 0) >= {count}", 120)

    def clean(self):
        asked = [r for r in self.page.requests
                 if not r.startswith(("file:", "data:", "about:", "blob:"))]
        assert not asked and not self.page.complaints


LEFT, RIGHT, SPACE = ("ArrowLeft", 37), ("ArrowRight", 39), (" ", 32)
UP, DOWN = ("ArrowUp", 38), ("ArrowDown", 40)
T_SLIDER = ".live-slider input"      # the first of a part's sliders


@WITHOUT_BROWSER
def test_a_press_draws_a_digit_and_the_slider_leads_back_along_its_way(page, trained):
    "By mouse, by keyboard, by touch: each press another seed, and what is drawn is what was found."
    page.appearance("light")
    hand = Hand(page, "argument.html", "[data-live=digits]")
    greys = """[...part.querySelectorAll('.live-pictures canvas')].map(canvas => {
      const grey = [...canvas.getContext('2d').getImageData(0, 0, 16, 16).data];
      return new Set(grey.filter((_, i) => i % 4 === 0)).size;
    })"""
    assert hand.js(greys)[0] > 50 and hand.js(greys)[1] == 1      # noise, and not asked yet: grey
    assert hand.js(f"part.querySelector('{T_SLIDER}').disabled")  # and no way to walk along
    begins = hand.js("""[...part.querySelector('canvas').getContext('2d').getImageData(
      0, 0, 16, 16).data].filter((_, i) => i % 4 === 0)""")      # the noise of the next digit
    loaded = lambda: sum(o.endswith("live-digits.js") for o in page.requests)
    hand.click("button")
    hand.done(1)
    assert loaded() == 1
    hand.click(T_SLIDER, 0.02)
    times = hand.js("part.state().times.map(String)")
    assert hand.js("part.querySelector('output').textContent") == times[0] == "1000"
    assert "t = 1000" in hand.js("part.querySelector('figcaption').textContent")
    hand.key(T_SLIDER, *RIGHT)
    assert hand.js("part.querySelector('output').textContent") == times[1]
    shown = """(() => {
      const canvas = part.querySelector("canvas"), {xs} = part.state();
      const grey = [...canvas.getContext("2d").getImageData(0, 0, 16, 16).data];
      return Math.max(...xs[%d].map((v, i) =>
        Math.abs(grey[4 * i] / 127.5 - 1 - Math.min(Math.max(v, -1), 1))));
    })()"""
    assert hand.js(shown % 1) < 1.01 / 127.5
    assert begins == hand.js("""[...part.state().xs[0]].map(v =>
      Math.round((Math.min(Math.max(v, -1), 1) + 1) * 127.5))""")
    seed = "part.querySelector('input[type=number]').value"
    before = hand.js(seed)
    hand.key("button", *SPACE)
    hand.done(2)
    assert int(hand.js(seed)) == int(before) + 1
    hand.touch("button")
    hand.done(3)
    assert hand.js("part.querySelector('select').value") == "adams"
    hand.js("part.querySelector('details').open = true")
    hand.key("select", *UP)               # to the sampler before
    hand.done(4)
    assert hand.js("part.querySelector('select').value") == "unipc"
    assert hand.js("part.querySelectorAll('.live-made canvas').length") == 4 and loaded() == 1
    hand.clean()


@WITHOUT_BROWSER
def test_the_hand_leads_while_a_digit_is_still_being_drawn(page):
    "No further than the way goes by then, and no longer than until the next digit."
    hand = Hand(page, "argument.html", "[data-live=digits]")
    hand.js("part.querySelectorAll('.live-slider input')[1].value = 9")       # 1,000 steps
    hand.click("button")
    page.wait(f"{hand.part}.state().xs.length > 5", 60)
    hand.touch(T_SLIDER, 0.98)
    at, way = hand.js("[+part.querySelector('input').value, part.state().xs.length]")
    assert 0 < at < way < 1000
    page.wait(f"{hand.part}.state().xs.length > {way + 5}", 60)
    assert hand.js("+part.querySelector('input').value") == at
    hand.js("part.querySelectorAll('.live-slider input')[1].value = 2")       # 3 steps
    hand.click("button")
    hand.done(1)
    assert hand.js("[+part.querySelector('input').value, part.state().xs.length]") == [3, 4]
    hand.clean()


@WITHOUT_BROWSER
@pytest.mark.parametrize("part, says", [("digits", ".live-status"), ("guesses", ".live-pictures")])
def test_weights_that_do_not_come_are_said_to_be_missing_and_asked_for_again(page, part, says):
    page.open(url("argument.html"))
    page.call("Network.setBlockedURLs", urls=["*live-digits.js"])
    hand = Hand.__new__(Hand)
    hand.page, hand.part = page, f"document.querySelector('[data-live={part}]')"
    hand.middle("canvas")
    if part == "digits": hand.click("button")
    page.wait(f"{hand.part}.querySelector('{says}').innerText.includes('are missing')", 20)
    page.call("Network.setBlockedURLs", urls=[])
    hand.click("button")
    hand.done(1)
    assert "are missing" not in hand.js("part.innerText")


@WITHOUT_BROWSER
def test_weights_that_come_cut_short_are_said_to_be_missing_and_asked_for_again(page):
    hand = Hand(page, "argument.html", "[data-live=digits]")
    hand.js("""(() => {               // the script arrives, and has nothing in it
      const append = document.head.append;
      document.head.append = (...nodes) => {
        for (const node of nodes) node.src = "data:text/javascript,0";
        append.call(document.head, ...nodes);
        document.head.append = append;
      };
    })()""")
    hand.click("button")
    page.wait(f"{hand.part}.querySelector('.live-status').innerText.includes('are missing')", 20)
    hand.click("button")
    hand.done(1)
    assert "are missing" not in hand.js("part.innerText")
    hand.clean()


@WITHOUT_BROWSER
def test_a_digit_is_ruined_and_guessed_as_in_python(page, trained):
    net, d = trained
    page.appearance("dark")
    hand = Hand(page, "argument.html", "[data-live=guesses]")
    hand.middle("canvas")                 # it begins when it is seen
    hand.done(1)
    hand.key(T_SLIDER, *LEFT)
    hand.done(2)
    found = hand.js("Object.fromEntries(Object.entries(part.state()).map(([k, v]) => [k, [...v]]))")
    x0 = to_model(digits(train=False)[0][:1])
    assert far(found["x0"], x0) < 1e-6
    x, t = torch.tensor(found["x"]).view(1, 1, 16, 16), torch.tensor([298])       # step 299
    assert far(found["x0Hat"], d.p_mean_variance(net, x, t).x0) < 1e-4
    noise = (x - d.sqrt_alpha_bars[298] * x0) / d.sqrt_one_minus_alpha_bars[298]
    assert abs(noise.mean()) < 5 / 16 and abs(noise.std() - 1) < 5 / 512**0.5
    for i, button in enumerate(("button", "button + button")):
        hand.touch(button)
        hand.done(3 + i)
    hand.clean()


@WITHOUT_BROWSER
def test_particles_walk_there_and_back_and_end_on_the_data(page):
    page.appearance("light")
    hand = Hand(page, "experiments/swiss_roll.html", "[data-live=particles]")
    page.js("new Promise(done => setTimeout(done, 500))")
    assert hand.js("part.dataset.done ?? null") is None            # it waits until it is seen
    hand.middle("canvas")
    hand.done(1)
    out = torch.tensor(hand.js("part.state().states.map(o => [...o])")[-1]).view(-1, 2)
    assert (out.mean(0).abs() < 5 / len(out)**0.5).all()          # eq. 2 ends in normal noise
    assert ((out.var(0) - 1).abs() < 5 * (2 / len(out))**0.5).all()
    assert hand.js("part.querySelector('[role=status]').textContent").strip()
    hand.click("button + button")         # back
    hand.done(2)
    states = hand.js("part.state().states.map(o => [...o])")
    assert len(states) == 41
    start, end = (torch.tensor(states[i]).view(-1, 2) for i in (0, -1))
    centres = torch.tensor(page.js('ddpm.MIXTURES["swiss roll"].centres'))
    near = lambda x: (torch.cdist(x, centres).min(1).values < 0.2).float().mean()
    assert near(end) > 0.95 and near(start) < 0.7
    t = "part.querySelector('output').textContent"
    assert hand.js(t) == "0"
    hand.key(T_SLIDER, *LEFT)
    assert hand.js(t) == "25"
    hand.touch(T_SLIDER, 0.02)
    assert hand.js(t) == "1000"
    hand.key("select", *DOWN)             # another data set: it walks anew
    hand.page.wait(f"{hand.part}.state().states.length == 41 && {hand.part}.dataset.done > 2", 60)
    hand.clean()


@WITHOUT_BROWSER
def test_a_hand_on_the_film_of_particles_does_not_lose_what_is_being_computed(page):
    hand = Hand(page, "experiments/swiss_roll.html", "[data-live=particles]")
    hand.middle("canvas")
    hand.done(1)
    hand.js("""(([t, steps], data) => {
      steps.value = 100;
      data.selectedIndex = (data.selectedIndex + 1) % data.options.length;
      data.onchange();
      t.value = 3;
      t.oninput();
    })(part.querySelectorAll('.live-slider input'), part.querySelector('select'))""")
    page.wait(f"{hand.part}.state().states.length == 101", 60)
    hand.clean()


@WITHOUT_BROWSER
def test_a_hand_on_the_schedule_moves_its_numbers(page):
    page.appearance("dark")
    for name in ("01_schedules.html", "04_objective.html"):
        hand = Hand(page, name, "[data-live=curves]")
        table = lambda: hand.js("[part.state().T, part.state().betas.at(-1)]")
        T, last = table()
        assert T == 1000 and abs(last - 0.02) < 1e-9          # the number that is shown
        hand.click(T_SLIDER, 0.02)
        assert table()[0] < 60
        hand.key(T_SLIDER, *RIGHT)
        assert hand.js("part.querySelectorAll('svg').length") == 2
        before = table()[1]
        hand.touch(".live-slider:nth-of-type(4) input", 0.9)
        assert table()[1] > 2 * before
        hand.key("select", *DOWN)
        hand.page.wait(f"{hand.part}.querySelector('select').value == 'quadratic'", 5)
        assert "NaN" not in hand.js("part.innerHTML")
        hand.clean()


@WITHOUT_BROWSER
def test_a_film_plays_pauses_and_is_led_frame_by_frame(page):
    page.appearance("light")
    hand = Hand(page, "02_diffusion.html", "[data-live=player]")
    frame = "+part.querySelector('input').value"
    hand.middle("img")
    page.wait(f"+{hand.part}.querySelector('input').value > 0", 20)
    hand.click("button")
    assert hand.js("part.querySelector('button').textContent") == "Play"
    at = hand.js(frame)
    page.js("new Promise(done => setTimeout(done, 500))")
    assert hand.js(frame) == at
    hand.key("input", *RIGHT)
    assert hand.js(frame) == at + 1
    hand.touch("input", 0.98)
    last = int(hand.js("part.dataset.frames")) - 1
    assert hand.js(frame) == last
    columns = int(hand.js("part.dataset.columns"))
    moved = hand.js("part.querySelector('img').style.transform")
    rows = -(-(last + 1) // columns)
    x, y = (float(v) for v in re.findall(r"-?[\d.]+(?=%)", moved))
    assert abs(x + 100 * (last % columns) / columns) < 1e-3
    assert abs(y + 100 * (last // columns) / rows) < 1e-3
    size = hand.js("[part.querySelector('.live-frame'), part.querySelector('img')].map(e => "
                   "[e.getBoundingClientRect().width, e.getBoundingClientRect().height])")
    assert abs(size[1][0] - columns * size[0][0]) < 1 and abs(size[1][1] - rows * size[0][1]) < 2
    hand.clean()


@WITHOUT_BROWSER
def test_nothing_moves_by_itself_where_motion_is_not_wanted(page):
    page.media = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    hand = Hand(page, "02_diffusion.html", "[data-live=player]")
    hand.middle("img")
    page.js("new Promise(done => setTimeout(done, 800))")
    assert hand.js("part.querySelector('input').value") == "0"
    hand.click("button")                  # but it does where the reader asks for it
    page.wait(f"+{hand.part}.querySelector('input').value > 0", 20)
    page.js("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
    page.wait(f"{hand.part}.querySelector('button').textContent == 'Play'", 20)      # out of sight
    page.appearance("light")


PARTS = {"digits": "argument.html", "guesses": "argument.html", "curves": "01_schedules.html",
         "particles": "experiments/swiss_roll.html", "player": "02_diffusion.html"}
# every control, buttons first (they bring the others something to show): its kind, and by which key
# and on which side of a slider there is something to change
NUMBERED = """[...part.querySelectorAll("button, input, select")].sort((a, b) =>
  (b.tagName === "BUTTON") - (a.tagName === "BUTTON")).map((e, i) => {
    e.dataset.control = `c${i}`;
    e.addEventListener(e.tagName === "BUTTON" ? "click" : "input", event => {
      part.felt = (part.felt ?? 0) + (event.isTrusted && event.target === e);
    });
    return e.type;
  })"""
SIDE = """(e => e.type === "range" ? [(e.value - e.min) / (e.max - e.min) > 0.5,
  e.value === e.max] : [false, e.selectedIndex === e.options?.length - 1])(
  part.querySelector('{}'))"""
SHOWN = """JSON.stringify([part.dataset.done, part.innerText, part.innerHTML.length,
  [...part.querySelectorAll("input, select")].map(e => e.value),
  [...part.querySelectorAll("canvas")].map(e => e.toDataURL()),
  [...part.querySelectorAll("img")].map(e => e.style.transform)])"""
REACHED = """(e => {{
  e.scrollIntoView({{block: "center", behavior: "instant"}});
  const r = e.getBoundingClientRect();
  return document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2) === e;
}})(part.querySelector('{}'))"""


def press(hand, selector, kind, way):
    "One control by mouse, by touch or by key, towards where there is something to change."
    right, last = hand.js(SIDE.format(selector))
    if way == "key" and kind == "button": hand.key(selector, *SPACE)
    elif way == "key" and kind == "number": hand.key(selector, *UP)
    elif way == "key" and kind == "range": hand.key(selector, *(LEFT if last else RIGHT))
    elif way == "key": hand.key(selector, *(UP if last else DOWN))
    else:
        share = 0.5 if kind != "range" else 0.2 if right else 0.8
        (hand.click if way == "mouse" else hand.touch)(selector, share)


def settled(hand):
    "Wait until the part shows the same twice, or for two seconds: a film goes on."
    for _ in range(10):
        before = hand.js(SHOWN)
        hand.page.js("new Promise(done => setTimeout(done, 200))")
        if hand.js(SHOWN) == before: return


@WITHOUT_BROWSER
@pytest.mark.parametrize("part", PARTS)
def test_every_control_of_a_part_answers_to_mouse_touch_and_keyboard(page, part):
    """It hears of the hand itself, and what the part shows changes. (A list and a field are only
    pressed: what they then open is the browser's own.)"""
    page.media = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    hand = Hand(page, PARTS[part], f"[data-live={part}]")
    hand.middle("button, input, select")
    if part in ("guesses", "particles"): hand.done(1)       # these begin by themselves
    hand.js("part.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    kinds = hand.js(NUMBERED)
    assert kinds
    for i, kind in enumerate(kinds):
        selector = f"[data-control=c{i}]"
        for way in ("mouse", "touch", "key"):
            if way != "key" and kind in ("number", "select-one"):
                assert hand.js(REACHED.format(selector)), (i, kind)
                continue
            settled(hand)
            felt, shown = hand.js("part.felt ?? 0"), hand.js(SHOWN)
            press(hand, selector, kind, way)
            changed = f"(part => part.felt > {felt} && {SHOWN} !== {json.dumps(shown)})"
            try: page.wait(f"{changed}({hand.part})", 30)
            except TimeoutError: pytest.fail(f"{way} on control {i}, {kind}, changes nothing")
    hand.clean()
    page.appearance("light")


LIVE_PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.html")
                    if "data-live=" in p.read_text(encoding="utf-8"))

NAMELESS = """[...document.querySelectorAll("[data-live]")].flatMap(part => {
  const own = [...part.querySelectorAll("button, input, select")].filter(e => !(
    e.textContent.trim() && e.tagName === "BUTTON" || e.closest("label")?.textContent.trim()));
  const seen = [...part.querySelectorAll("canvas, svg")].filter(e =>
    e.getAttribute("role") !== "img" || !e.getAttribute("aria-label"));
  const group = part.getAttribute("role") === "group" && part.getAttribute("aria-label");
  const mute = [...part.querySelectorAll("input[type=range]")].filter(
    e => e.getAttribute("aria-valuetext") === null);
  return [...own, ...seen, ...mute, ...group ? [] : [part]].map(e => e.outerHTML.slice(0, 120));
})"""

DIM = "(() => {" + LIGHT + """
  const parts = ["label", "button", "select", "figcaption", "output", ".live-status"];
  return [...document.querySelectorAll(parts.map(o => "[data-live] " + o).join(", "))].map(e => {
    const style = getComputedStyle(e);
    const [a, b] = [light(style.color), light(ground(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05) * style.opacity, e.outerHTML.slice(0, 80)];
  }).filter(([contrast]) => contrast < 4.5).slice(0, 3);
})()"""


@WITHOUT_BROWSER
@pytest.mark.parametrize("name", LIVE_PAGES)
def test_live_parts_are_named_legible_and_fit_a_telephone(page, name):
    page.appearance("light")
    page.open(url(name))
    page.resize(390, 800)
    for scheme in ("light", "dark"):
        page.appearance(scheme)
        page.call("Emulation.setEmulatedMedia", **page.media)
        page.wait(f"document.documentElement.dataset.theme == '{scheme}' "
                  "&& !document.getAnimations().some(o => o.playState === 'running')", 10)
        assert page.js(NAMELESS) == [], scheme
        assert page.js("[...document.querySelectorAll('[data-live] output')].every("
                       "o => o.ariaLive === 'off')")          # a film would be read for ever
        assert page.js(DIM) == [], scheme
        assert page.js("document.documentElement.scrollWidth") <= 391, scheme
        wide = page.js("""[...document.querySelectorAll("[data-live] *")].filter(e =>
          e.getBoundingClientRect().right > 391 && !e.closest(".live-frame")).map(
          e => e.outerHTML.slice(0, 80))""")
        assert wide == [], scheme
        small = page.js("""[...document.querySelectorAll("[data-live] :is(button, input, select)")]
          .filter(e => e.getBoundingClientRect().height < 24).map(e => e.outerHTML)""")
        assert small == [], scheme                     # for a finger: WCAG 2.2, target size
    assert not page.complaints


def test_enough_pages_are_live(): assert len(LIVE_PAGES) >= 8


def test_the_site_builds_with_its_live_parts_from_a_script_beside_it():
    assert sys.modules["live"] is live and live.SOURCES == ROOT / "nbs" / "_live"
