"""timm's own train.py and validate.py with the zoo's models.

timm has no way to import a package of the user's before it looks a model up, and its wheel comes without the scripts;
so the script of a checkout runs in this process, in which `mixerzoo.tasks.vision` has registered everything:

    mixerzoo timm-train pytorch-image-models/train.py imagenet --model zoo_hgrn2_tiny_patch16_224 --epochs 300
    torchrun --nproc-per-node 8 -m mixerzoo.cli timm-train pytorch-image-models/train.py imagenet --model ...
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def find_script(name: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """The script and its arguments: the first argument if it is a .py file or a folder with `name` in it, else ./name.

    Raises ValueError if there is none.
    """
    first = Path(arguments[0]) if arguments else Path()
    if first.suffix == ".py":
        script, arguments = first, arguments[1:]
    elif arguments and (first / name).is_file():
        script, arguments = first / name, arguments[1:]
    else:
        script = Path(name)
    if not script.is_file():
        raise ValueError(
            f"there is no script {str(script)!r}; remedy: the path of {name} in a checkout of "
            "https://github.com/huggingface/pytorch-image-models, before all other arguments"
        )
    return script, arguments


def run_script(script: Path, arguments: list[str]) -> None:
    """Run a script as `python script arguments` would, in this process."""
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
