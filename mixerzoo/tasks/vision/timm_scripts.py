"""timm's own train.py and validate.py run here with the zoo's models.

timm can't import a user's package before it looks a model up, and its wheel comes without the scripts.
So the script of a checkout runs in this process, where `mixerzoo.tasks.vision` has registered everything:

    mixerzoo timm-train pytorch-image-models/train.py imagenet --model zoo_hgrn2_tiny_patch16_224 --epochs 300
    torchrun --nproc-per-node 8 -m mixerzoo.cli timm-train pytorch-image-models/train.py imagenet --model ...
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def find_script(name: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """Returns the script and its arguments.

    The first argument is the script if it is a .py file, or its folder if `name` is in it; otherwise the script is
    ./name. Raises ValueError if there is none.
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
    """Runs a script as `python script arguments` would, in this process."""
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
