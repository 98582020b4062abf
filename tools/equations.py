"""Give every equation its number, and every reference to another page a link, in the notebooks.

    python tools/equations.py            write what is missing or wrong into nbs/
    python tools/equations.py --check    write nothing; exit 1 if anything is

JupyterLab counts equations notebook by notebook, and knows no label of another notebook. So the
number stands in the equation's fence (`:enumerator: 4`), and a reference to an equation of another
notebook is a link, `[(4)](02_diffusion.ipynb#eq-ddpm-4)`; within a notebook it is {eq}`label`. A
page with equations begins with two lines that keep JupyterLab from numbering the others.
The numbers are those of nbs/conf.py: the paper's, or for our own the chapter and a letter.
"""
import argparse, json, re, sys

from plain import FRONT, MATH, equations, link, notebooks

LINKED = re.compile(r"\[\([\w-]+\)\]\((?:[\w./-]+\.ipynb)?#(eq-[\w-]+)\)")


def numbered(match):
    "A fence with its number, if it has a label."
    options, label = match["options"], re.search(r"^:label: *(\S+)", match["options"], re.M)
    if not label: return match[0]
    options = re.sub(r"^:enumerator:.*\n", "", options, flags=re.M)
    return f"```{{math}}\n{options}:enumerator: {equations()[label[1]][1]}\n{match['body']}\n```"


def mended(text, page):
    "Prose of a page, its equations numbered and its references such that JupyterLab follows them."
    def reference(match):
        to, number = equations()[match[1]]
        return f"{{eq}}`{match[1]}`" if to == page else f"[({number})]({link(page, to)}#{match[1]})"

    text = LINKED.sub(r"{eq}`\1`", MATH.sub(numbered, text))
    return re.sub(r"\{eq\}`([\w-]+)`", reference, text)


def fronted(texts):
    "The first cell of a page's prose, with those lines where any of it is a display equation."
    first = texts[0].removeprefix(FRONT)
    display = re.compile(r"^(?:\$\$|```\{math\})", re.M)
    return FRONT + first if any(map(display.search, texts)) else first


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is wrong")
    args, wrong = parser.parse_args(), []
    for path, page, nb in notebooks():
        cells = [cell for cell in nb["cells"] if cell["cell_type"] == "markdown"]
        texts = ["".join(cell["source"]) for cell in cells]
        mend = [mended(fronted(texts), page), *(mended(text, page) for text in texts[1:])]
        for cell, text, new in zip(cells, texts, mend):
            if new == text: continue
            cell["source"] = new.splitlines(keepends=True)
            wrong.append(page)
        if page in wrong and not args.check:
            text = json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")
    for page in sorted(set(wrong)): print(f"{page}: {wrong.count(page)} cells")
    if wrong and args.check: sys.exit("Run `python tools/equations.py` and commit what it writes.")


if __name__ == "__main__": main()
