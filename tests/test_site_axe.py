"""The site under axe-core, wide and narrow, light and dark: a page of each kind; with --slow, all.

axe-core is no part of the project. `npm install axe-core` beside the checkout or above it, or say
where its script is: AXE=/path/to/axe.min.js (`.ci/run` does). Where there is none, these tests are
skipped. A look takes about four seconds of processor, so all of them a quarter of an hour.
"""
import os
from pathlib import Path

import pytest
from test_site import PAGES, ROOT, WITHOUT_BROWSER, url

from browser import browser

PLACES = [Path(o) for o in (os.environ.get("AXE"),) if o]
PLACES += [o / "node_modules" / "axe-core" / "axe.min.js" for o in (ROOT, *ROOT.parents)]
AXE = next((o for o in PLACES if o.is_file()), None)
WITHOUT_AXE = pytest.mark.skipif(not AXE, reason="no axe-core here: `npm install axe-core`, or AXE="
                                                 "the path of its axe.min.js")
SIZES = {"desktop": (1300, 900), "telephone": (390, 800)}
KINDS = ["index", "00_prestudy", "01_schedules", "argument", "experiments/ablations", "engine/cli",
         "appendix/paper_map", "appendix/notation", "appendix/live", "reference", "source/bound",
         "source/engine/runs", "search"]
BRIEFLY = [("light", ["desktop"]), ("dark", ["telephone"])]
LOOKS = [(f"{name}.html", *look) for name in KINDS for look in BRIEFLY]
LOOKS += [pytest.param(name, scheme, [*SIZES], marks=pytest.mark.slow)
          for name in PAGES for scheme in ("light", "dark")]
RUN = """(async () => {
  for (const o of document.getAnimations()) o.finish();        // colours half way are no colours
  const {violations} = await axe.run(document, {resultTypes: ["violations"]});
  return violations.filter(o => ["serious", "critical"].includes(o.impact)).map(o =>
    `${o.impact} ${o.id}, ${o.nodes.length} times: ` + o.nodes.slice(0, 3).map(n =>
      `${n.target} ${n.html.slice(0, 160)} (${n.any.concat(n.all, n.none)[0]?.message})`
    ).join("\\n  "));
})()"""


@pytest.fixture(scope="module")
def page():
    with browser() as p: yield p


def found(page, size):
    page.resize(*SIZES[size])
    page.js("dispatchEvent(new Event('resize'))")
    return page.js(RUN)


@WITHOUT_BROWSER
@WITHOUT_AXE
@pytest.mark.parametrize("name, scheme, sizes", LOOKS)
def test_axe_finds_nothing_serious(page, name, scheme, sizes):
    page.appearance(scheme)
    page.open(url(name))
    page.js(AXE.read_text(encoding="utf-8") + ";0")
    said = {size: found(page, size) for size in sizes}
    assert not any(said.values()), "\n".join(f"{size}: {o}" for size in said for o in said[size])


def test_each_part_of_the_site_has_a_page_among_those_that_are_always_looked_at():
    part = lambda name: name.rpartition("/")[0]
    assert {f"{name}.html" for name in KINDS} <= {*PAGES}
    assert {*map(part, KINDS)} == {*map(part, PAGES)}


@WITHOUT_BROWSER
@WITHOUT_AXE
def test_axe_would_see_a_serious_fault(page):
    page.appearance("light")
    page.open(url("index.html"))
    page.js(AXE.read_text(encoding="utf-8") + ";0")
    page.js("""document.querySelector('article').insertAdjacentHTML('beforeend',
      '<img src="_static/favicon.svg"><p style="color: #ccc; background: #fff">pale</p>')""")
    said = "\n".join(found(page, "desktop"))
    assert "image-alt" in said and "color-contrast" in said
