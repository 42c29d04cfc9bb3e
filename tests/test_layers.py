"""A module imports only from layers below its own, or from its own package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# within a layer, a module may import those named before it
LAYERS = [
    ["errors", "schema", "stopping", "locks"],
    [
        "splits",
        "selection",
        "reference",
        "search_spaces",
        "optima",
        "search_optimum",
        "environment",
        "records",
        "ranks",
    ],
    ["queries", "intervals", "results", "statistics", "tables", "figures"],
    [
        "torchvision_import",
        "distributed",
        "metrics",
        "datasets",
        "augment",
        "crops",
        "sampling",
        "models",
        "figure_inputs",
    ],
    ["losses", "objective", "model_folder", "features", "datamodule", "module", "callbacks"],
    ["config", "composition", "finished", "recorded", "assembly", "evaluation", "fold_processes", "trial", "rank"],
    ["evaluate", "reproduce"],
    ["command_line", "original_configs", "original", "prepare", "draw", "table", "study", "report", "submit"],
    ["__main__", "train"],
]
RANK = {name: number for number, name in enumerate(name for names in LAYERS for name in names)}
# modules that stay importable without torch, Lightning or Ax
LIGHT = ["errors", "schema", "splits", "selection", "records", "environment", "search_spaces", "optima", "tables.trial"]
LIGHT += ["config", "finished", "command_line", "original_configs", "figures", "__main__", "search_optimum", "queries"]
LIGHT += ["stopping", "locks", "ranks", "statistics", "intervals", "results", "composition", "table", "study", "submit"]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module if node.level == 0 else f"{path.parent.name}.{node.module}"


def modules():
    package = ROOT / "mlrc_lightning"
    for path in [*sorted(package.rglob("*.py")), ROOT / "train.py"]:
        relative = path.relative_to(package) if path.is_relative_to(package) else Path("train.py")
        if relative != Path("__init__.py"):
            yield path, relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize(("path", "name"), [pytest.param(p, n, id=str(p.relative_to(ROOT))) for p, n in modules()])
def test_module_imports_only_from_below(path, name):
    for imported in imports_of(path):
        parts = imported.split(".")
        assert parts[0] != "hydra_plugins", f"{path.name} imports the plugin set"
        if parts[0] == "mlrc_lightning" and len(parts) > 1 and parts[1] != name:
            assert RANK[parts[1]] < RANK[name], f"{name} imports {imported}, which is not below it"


def test_omegaconf_ends_at_the_configuration():
    for path, name in modules():
        if name not in {"config", "command_line", "train", "__main__", "prepare"}:
            assert not any(imported.split(".")[0] == "omegaconf" for imported in imports_of(path)), path


def test_the_plugin_set_knows_nothing_of_metric_learning():
    for path in (ROOT / "hydra_plugins").rglob("*.py"):
        roots = {imported.split(".")[0] for imported in imports_of(path)}
        assert roots.isdisjoint({"mlrc_lightning", "pytorch_metric_learning"}), path


def test_the_plugin_namespace_hides_no_other_plugin():
    assert not (ROOT / "hydra_plugins" / "__init__.py").exists()


def test_no_module_is_named_utils_and_no_class_base():
    for path, _ in modules():
        assert path.stem not in {"utils", "common", "helpers", "base"}


def test_light_modules_import_no_torch_lightning_timm_or_ax():
    heavy = ["torch", "pytorch_lightning", "timm", "torchvision", "ax", "pandas", "sklearn", "matplotlib"]
    imports = "; ".join(f"import mlrc_lightning.{name}" for name in LIGHT)
    code = f"import sys; {imports}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_report_needs_no_torch():
    heavy = ["torch", "pytorch_lightning", "timm", "torchvision", "ax", "sklearn"]
    code = f"import sys; import mlrc_lightning.report.site\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
