"""Every page of the site under axe-core, wide and narrow, light and dark.

axe-core is no part of the project. `npm install axe-core` beside the checkout or above it, or say
where its script is: AXE=/path/to/axe.min.js. Where there is none, these tests are skipped.
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
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, name, scheme):
    page.appearance(scheme)
    page.open(url(name))
    page.js(AXE.read_text(encoding="utf-8") + ";0")
    said = {size: found(page, size) for size in SIZES}
    assert not any(said.values()), "\n".join(f"{size}: {o}" for size in said for o in said[size])


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
