"""The rooms of the package stand in one order, and a module imports from its own room or from those below it."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlrc_lightning"
# from the bottom to the top; rooms of one line know nothing of each other
ROOMS = [
    ["errors", "names", "reference", "_torchvision", "_lazy"],
    ["metrics", "reading"],
    ["files"],
    ["data", "results"],
    ["settings"],
    ["models", "parallel", "reporting"],
    ["training"],
    ["protocol"],
    ["cli", "original"],
    ["__main__", "train"],
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
HEAVY = ["torch", "pytorch_lightning", "timm", "torchvision", "ax", "pandas", "sklearn", "matplotlib"]
# of the rooms that hold torch too, the modules that stay importable without it
LIGHT = ["data.splits", "training.selection", "parallel.signals", "parallel.ranks", "protocol.finished", "__main__"]
LIGHT += ["cli.errors", "cli.study", "cli.submit", "original.translate", "original.folder"]
LIGHT_ROOMS = ["errors", "names", "reading", "files", "results", "settings", "reporting"]
# they draw, with matplotlib, and the report puts the drawings on its pages
DRAWING = ("reporting.figures.", "reporting.site.")


def name_of(path):
    relative = path.relative_to(ROOT).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    return ".".join(parts)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            # a name may be a module, as in `from mlrc_lightning import errors`
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files_of(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def modules():
    for path in [*files_of("mlrc_lightning"), ROOT / "train.py"]:
        if path != PACKAGE / "__init__.py":
            yield path, name_of(path).removeprefix("mlrc_lightning.").partition(".")[0]


@pytest.mark.parametrize(("path", "room"), [pytest.param(p, r, id=str(p.relative_to(ROOT))) for p, r in modules()])
def test_module_imports_only_from_rooms_below(path, room):
    for imported in imports_of(path):
        parts = imported.split(".")
        assert parts[0] != "hydra_plugins", f"{path.name} imports a plugin"
        if parts[0] == "mlrc_lightning" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room:
            assert LEVEL[parts[1]] < LEVEL[room], f"{room} imports {imported}, which is not below it"


def test_every_room_has_its_place_in_the_order():
    found = {path.stem for path in PACKAGE.iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert found | {"train"} == set(LEVEL)


def test_floor_of_the_package_stays_small():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 20


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle():
    paths = {name_of(path): path for path in files_of("mlrc_lightning", "hydra_plugins", "mlrc_sweeper")}
    # the address book of a room names modules of the room, and they may import the room
    books = {name for name, path in paths.items() if path.name == "__init__.py"}
    graph = {}
    for name, path in paths.items():
        if name not in books:
            targets = {known for i in imports_of(path) for known in (i, i.rpartition(".")[0]) if known in paths}
            graph[name] = targets - books - {name}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(graph)


def test_torchvision_is_made_importable_first():
    needs_torchvision = {"pytorch_lightning", "timm", "torchvision", "torchmetrics"}
    for path, _ in modules():
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        if needs_torchvision & {name.partition(".")[0] for name in names}:
            assert "mlrc_lightning._torchvision" in names, path


def test_omegaconf_ends_at_the_settings():
    for path, room in modules():
        if room not in {"settings", "train", "__main__"} and path.relative_to(PACKAGE).as_posix() not in {
            "cli/errors.py",
            "cli/prepare.py",
        }:
            assert not any(imported.split(".")[0] == "omegaconf" for imported in imports_of(path)), path


def test_the_plugin_set_knows_nothing_of_metric_learning():
    for path in files_of("hydra_plugins", "mlrc_sweeper"):
        roots = {imported.split(".")[0] for imported in imports_of(path)}
        assert roots.isdisjoint({"mlrc_lightning", "pytorch_metric_learning"}), path


def test_the_public_face_of_the_sweeper_stands_alone():
    for path in files_of("mlrc_sweeper"):
        roots = {imported.split(".")[0] for imported in imports_of(path)}
        assert roots <= {*sys.stdlib_module_names, "mlrc_sweeper"}, path


def test_the_plugin_namespace_hides_no_other_plugin():
    assert not (ROOT / "hydra_plugins" / "__init__.py").exists()


def test_no_module_is_named_utils_and_no_class_base():
    for path, _ in modules():
        assert path.stem not in {"utils", "common", "helpers", "base"}


def imported_beside(names, heavy):
    imports = "; ".join(f"import {name}" for name in names)
    code = f"import sys; {imports}\nprint([name for name in {heavy} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.slow
def test_light_modules_import_no_torch_lightning_timm_or_ax():
    rooms = [name_of(p).removeprefix("mlrc_lightning.") for p, room in modules() if room in LIGHT_ROOMS]
    names = [*LIGHT, *(name for name in rooms if not name.startswith(DRAWING))]
    assert imported_beside([f"mlrc_lightning.{name}" for name in names], HEAVY).strip() == "[]"


@pytest.mark.slow
def test_the_report_needs_no_torch():
    heavy = [name for name in HEAVY if name not in ("matplotlib", "pandas")]
    assert imported_beside(["mlrc_lightning.reporting.site.site"], heavy).strip() == "[]"


def test_names_of_metrics_are_those_that_are_computed():
    from mlrc_lightning import names
    from mlrc_lightning.metrics import METRICS

    assert tuple(names.METRICS) == METRICS == tuple(names.PER_QUERY)
    assert names.MAP_AT_R in METRICS
