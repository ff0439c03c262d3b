"""Imports point down the list of rooms only (DESIGN.md, section 2)."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "kerasseg"
LEVELS = (
    ("errors", "tables"),
    ("labels", "ops"),
    ("layers", "losses", "metrics", "optimizers", "schedules", "crf", "data", "runs", "runtimes"),
    ("backbones",),
    ("models",),
    ("recipes",),
    ("evaluation", "export", "interop"),
    ("training",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# A module named in a string: import_lazily("kerasseg.x"), or "kerasseg.x:name" in a table.
_NAMED = re.compile(r"kerasseg(\.\w+)+(:\w+)?")


def targets(source: str, module: str, package: bool = False) -> set[str]:
    """Dotted names in kerasseg that a module imports, at any depth, relative ones resolved."""
    found = set()
    parts = module.split(".") if package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # `from kerasseg import x` may name a room; what a room offers is not looked into.
            found |= {f"{origin}.{alias.name}" for alias in node.names} if origin == "kerasseg" else {origin}
            found |= {f"{origin}.{alias.name}" for alias in node.names} if origin == "kerasseg.models" else set()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAMED.fullmatch(node.value):
            found.add(node.value.split(":")[0])
    return {name for name in found if name.split(".")[0] == "kerasseg"}


def room_of(name: str) -> str:
    return (name.split(".") + [""])[1]


def complaint(module: str, target: str) -> str | None:
    """Why this arrow must not be; None if it may."""
    here, there = room_of(module), room_of(target)
    if there not in LEVEL or here not in LEVEL:
        # The package's own front door and its names: kerasseg.KerassegError.
        return None
    if LEVEL[there] > LEVEL[here]:
        return f"{module} imports {target}, which lies above it"
    both_papers = here == there == "models" and module != "kerasseg.models"
    if both_papers and target.count(".") > 1 and target.split(".")[2] != module.split(".")[2]:
        return f"{module} imports {target}: networks do not import each other"
    return None


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(["kerasseg", *path.relative_to(PACKAGE).with_suffix("").parts])
        found[dotted.removesuffix(".__init__")] = path
    return found


def arrows():
    for module, path in modules().items():
        for target in targets(path.read_text(), module, path.name == "__init__.py"):
            yield module, target


def test_every_room_has_its_level():
    rooms = {room_of(module) for module in modules()} - {""}
    assert rooms <= set(LEVEL), f"new rooms need a place in the list: {sorted(rooms - set(LEVEL))}"


def test_no_import_points_up():
    found = list(arrows())
    assert len(found) > 200
    assert ("kerasseg.models", "kerasseg.models.fcn") in found
    assert not [text for text in (complaint(*arrow) for arrow in found) if text]


def test_a_bad_arrow_is_found():
    bad = {
        "kerasseg.data.batches": ["from kerasseg.models import MODELS", "def f():\n    import kerasseg.models.fcn"],
        "kerasseg.losses": ["from kerasseg import training", "from . import evaluation", "from .evaluation.report import overlay"],
        "kerasseg.runs": ["import_lazily('kerasseg.recipes')", "T = {'a': 'kerasseg.recipes.fcn:X'}"],
        "kerasseg.models.fcn": ["from kerasseg.models.gcn import gcn", "from .gcn import gcn", "from kerasseg.models import gcn"],
        "kerasseg.layers.pooling": ["from ..backbones import vgg", "if True:\n    from kerasseg.cli.main import main"],
    }
    for module, sources in bad.items():
        for source in sources:
            assert [1 for target in targets(source, module) if complaint(module, target)], (module, source)


def test_a_good_arrow_is_not():
    good = {
        "kerasseg.data.batches": "from kerasseg.data import table\nfrom kerasseg.losses import LOSSES\nimport numpy",
        "kerasseg.models.fcn": "from kerasseg.backbones.vgg import vgg16\nfrom kerasseg import KerassegError",
        "kerasseg.recipes.building": "from kerasseg.models import MODELS",
        "kerasseg.cli.train": "from kerasseg.training import train_recipe",
    }
    for module, source in good.items():
        assert targets(source, module) and not [1 for target in targets(source, module) if complaint(module, target)]
