"""Builds the package from settings.ini, its only configuration."""
import re
from configparser import ConfigParser
from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

licenses = {"apache2": "Apache-2.0", "mit": "MIT"}
statuses = ["1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable"]
readme = here / "README.md"
url = cfg["git_url"].strip().rstrip("/").removesuffix(".git")
documentation = run_path(str(here / "tools" / "addresses.py"))["documentation"]
site = documentation(url, cfg["doc_host"])
urls = {"Source": url, "Issues": url and f"{url}/issues", "Documentation": site,
        "Changelog": url and f"{url}/blob/{cfg['branch']}/CHANGELOG.md"}


def described() -> str:
    "README with links that lead somewhere from anywhere, where the project has an address."
    text = readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"]
    if not url: return text

    def absolute(match):
        picture, label, path = match.groups()
        base = f"{url}/raw/{cfg['branch']}" if picture else f"{url}/blob/{cfg['branch']}"
        if site and path.startswith("docs/") and not picture:
            base, path = site, path.removeprefix("docs/")
        return f"{picture}[{label}]({base}/{path})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)", absolute, text)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=described(),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    keywords=cfg["keywords"],
    license=f"{licenses[cfg['license']]} AND CC-BY-4.0",     # the second: the digits in assets/
    license_files=["LICENSE", "ddpm_nb/assets/digits.md"],
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status']) - 1]}",
        f"Intended Audience :: {cfg['audience']}",
        "Intended Audience :: Education",
        f"Natural Language :: {cfg['language']}",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Framework :: Jupyter",
        "Topic :: Education",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]),
    package_data={cfg["lib_name"]: cfg["package_data"].split()},
    include_package_data=False,
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in ("dev", "fid")},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
    project_urls={name: address for name, address in urls.items() if address},
)
