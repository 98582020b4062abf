"""The oldest version of each requirement of settings.ini, as constraints for pip.

    python tools/lowest.py > lowest.txt && pip install -c lowest.txt .
"""
from configparser import ConfigParser
from pathlib import Path

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
for requirement in config["DEFAULT"]["requirements"].split():
    name, version = requirement.split(">=")
    print(f"{name}=={version}")
