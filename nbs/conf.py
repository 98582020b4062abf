"""Sphinx's configuration; `tools/site.py` prepares the notebooks and runs Sphinx with it."""
import base64, hashlib, json, re
from pathlib import Path

project = "ddpm_nb"
html_title = "Denoising Diffusion, executable"
author = "the ddpm_nb contributors"
copyright = f"2026, {author}"

extensions = ["myst_nb", "sphinx_design", "sphinx.ext.mathjax"]
exclude_patterns = ["_static", "static"]

# notebooks: shown with the outputs that are committed, never run here
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_merge_streams = True
nb_render_markdown_format = "myst"    # tables in what a cell displays as Markdown
nb_code_prompt_show = "Show the code and its result"
nb_code_prompt_hide = "Hide the code and its result"
nb_mime_priority_overrides = [("html", "image/gif", 5)]
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist",
                          "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# the page
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["book.css", "live.css", "reading.css"]
html_js_files = ["book.js", ("live.js", {"defer": "defer"}), "reading.js"]
html_favicon = "_static/favicon.svg"
html_use_index = False              # it would be empty: reference.html is the list of names
html_copy_source = False            # the notebooks to download are written by tools/plain.py
html_show_sourcelink = False
html_show_sphinx = False
html_show_search_summary = False    # would be fetched, and a page opened from disk cannot fetch
html_last_updated_fmt = None
html_permalinks_icon = "#"
html_theme_options = {
    "use_download_button": False, "use_fullscreen_button": False,
    "show_toc_level": 2, "home_page_in_toc": True, "show_prev_next": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "logo": {"text": "Denoising Diffusion, executable"},
    "back_to_top_button": False, "navbar_persistent": [],
}
html_context = {"default_mode": "auto"}
mathjax_path = "mathjax/tex-svg-full.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}}
math_eqref_format = "({number})"


def shown_number(label: str,   # as in `:label:`
                 docname: str, # the page that defines it
                 count: int,   # which of that page's own equations this is, from 0
                ) -> str:
    "The paper's number for its equations; for our own, chapter and letter (8a), or page (runs-a)."
    if paper := re.fullmatch(r"eq-ddpm-(\d+)", label): return paper[1]
    page = docname.rsplit("/")[-1]
    letters = chr(97 + count % 26) * (1 + count // 26)
    if page[:2].isdigit(): return f"{int(page[:2])}{letters}"
    return f"{page.replace('_', '-')}-{letters}"


def number_equations(app, doctree):
    "Give labelled equations their number, in the page and wherever they are referred to."
    from docutils import nodes
    domain, docname, own = app.env.get_domain("math"), app.env.docname, 0
    for node in doctree.findall(nodes.math_block):
        label = node.get("label")
        if not label: continue
        node["number"] = shown_number(label, docname, own)
        own += not label.startswith("eq-ddpm-")
        domain.data["objects"][label] = (docname, node["number"])


def describe_images(app, doctree):
    "Give each figure the description that its cell's output carries."
    from docutils import nodes
    source = Path(app.env.doc2path(app.env.docname))
    if source.suffix != ".ipynb": return
    alts = {}
    for cell in json.loads(source.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            for mime, meta in output.get("metadata", {}).items():
                if mime.startswith("image/") and isinstance(meta, dict) and "alt" in meta:
                    data = base64.b64decode("".join(output["data"][mime]))
                    alts[hashlib.sha256(data).hexdigest()] = meta["alt"]   # so myst-nb names files
    for node in doctree.findall(nodes.image):
        if alt := alts.get(Path(node["uri"]).stem): node["alt"] = alt


def documented_at(text, docname, links):
    "Where that is which code in the prose names, as (page, anchor): `Trainer.fit`, `unet.UNet`."
    module = text.removeprefix("ddpm_nb.")
    if module in links["modules"] and "." in text: return links["modules"][module], ""
    while "." in module and module.split(".")[0] in links["parts"]: module = module.split(".", 1)[1]
    name = re.sub(r"^(\w+)(\.\w+)?(\(.*\))?$", r"\1", module)
    if name not in links["symbols"]: return None
    pages = links["symbols"][name]
    page = docname if docname in pages else pages[0]   # its own, else the first in the book's order
    # elsewhere, a plain word such as `lines` may be just that
    return (page, f"#api-{name}") if page == docname or re.search(r"[A-Z_(]", text) else None


def within(node, *kinds):
    "Whether a node lies inside one of these kinds, however deep."
    while (node := node.parent) is not None:
        if isinstance(node, kinds): return True
    return False


def link_symbols(app, doctree, docname):
    "Link `names` of the package, where the prose mentions them, to their documentation."
    from docutils import nodes
    for node in list(doctree.findall(nodes.literal)):
        if within(node, nodes.reference, nodes.title): continue
        if not (found := documented_at(node.astext(), docname, app.links)): continue
        uri = app.builder.get_relative_uri(docname, found[0]) + found[1]
        node.replace_self(nodes.reference("", "", node.deepcopy(), internal=True, refuri=uri,
                                          classes=["symbol"]))


def keep_together(app, doctree, docname):
    "No line ends between a formula in it and the comma after it, or the bracket before."
    from docutils import nodes
    for node in list(doctree.findall(nodes.math)):
        parts, i = node.parent, node.parent.index(node)
        near = [o if isinstance(o, nodes.Text) else "" for o in ("", *parts, "")][i:i + 3]
        head = re.search(r"\S{0,3}$", near[0])[0]
        tail = re.match(r"(\S{1,4}(?!\S))?", near[2])[0]
        if not head + tail: continue
        if tail: parts[i + 1] = nodes.Text(near[2][len(tail):])
        held = [nodes.Text(head), node.deepcopy(), nodes.Text(tail)]
        parts[i] = nodes.inline("", "", *held, classes=["together"])
        if head: parts[i - 1] = nodes.Text(near[0][:-len(head)])


def add_static(app, config):
    "What tools/live.py wrote beside the prepared notebooks."
    config.html_static_path.append(str(Path(app.srcdir) / "static"))


def setup(app):
    app.links = json.loads((Path(app.srcdir) / "symbols.json").read_text())   # of tools/site.py
    app.links["parts"] = {"ddpm_nb", *".".join(app.links["modules"]).split(".")}
    app.connect("config-inited", add_static)
    app.connect("doctree-read", number_equations)
    app.connect("doctree-read", describe_images)
    app.connect("doctree-resolved", link_symbols)
    app.connect("doctree-resolved", keep_together)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
