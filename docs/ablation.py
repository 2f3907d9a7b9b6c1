"""Runs the commands of docs/ablation.md in a fresh folder and saves the pictures that the page shows.

python docs/ablation.py FOLDER      minutes on two cores; FOLDER must not exist
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")


def commands(page: Path = PAGE) -> list[str]:
    """Returns the page's blocks of shell commands, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def run(blocks: list[str], folder: Path) -> str:
    """Runs blocks one after the other in one folder.

    Returns what they print; raises CalledProcessError if one fails.
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    folder.mkdir(parents=True)
    output = ""
    for block in blocks:
        shell = ["bash", "-euo", "pipefail", "-c", block]
        output += subprocess.run(
            shell, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ).stdout
    return output


def pictures(page: Path = PAGE) -> dict[str, str]:
    """Returns, for every image on the page, its file below docs/ and its file below the commands' folder."""
    links = re.findall(r"!\[[^]]*\]\((ablation/(\w+)-([^)]+\.png))\)", page.read_text(encoding="utf-8"))
    return {link: f"runs/{name}/{file}" for link, name, file in links}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    print(run(commands(), folder))
    for link, file in pictures().items():
        target = PAGE.parent / link
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / file, target)


if __name__ == "__main__":
    main()
