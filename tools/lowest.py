"""The oldest version of each requirement of settings.ini, as constraints for pip.

    python tools/lowest.py > lowest.txt && pip install -c lowest.txt .
"""
import re
from configparser import ConfigParser
from pathlib import Path

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
for requirement in config["DEFAULT"]["requirements"].split():
    name, version = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
    print(f"{name}=={version}" + ".*" * (version.count(".") < 2))
