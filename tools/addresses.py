"""Where the project is to be found, from `git_url` and `doc_host` in settings.ini, empty or not.

setup.py, README and the downloads all ask here, so that one setting is enough: GitHub's address.
"""
import re


def github(git_url: str) -> str:
    "owner/repository of an address on GitHub; empty of any other."
    m = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git|/)?", git_url.strip())
    return m[1] if m else ""


def documentation(git_url: str, doc_host: str = "") -> str:
    "Where the site is: as set, else where .github/workflows/docs.yml publishes it; or empty."
    if doc_host.strip(): return doc_host.strip().rstrip("/")
    owner, _, repository = github(git_url).partition("/")
    return f"https://{owner.lower()}.github.io/{repository}" if repository else ""
