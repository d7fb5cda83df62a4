"""The public surface, its documentation, the direction of imports, and what the library must not do."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import equidial

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "equidial"
FILES = sorted(SOURCE.rglob("*.py"))
ORDER = [
    *("errors", "_version", "groups", "representations", "filters", "certificates"),
    *("nn", "testing", "metrics", "adapters", "integrations", "baselines", "data", "recipes", "sweeps"),
    *("reporting", "cli"),
]


def surface() -> dict[str, list[str]]:
    modules = ["equidial"] + [f"equidial.{name}" for name in ORDER if name not in ("errors", "_version", "cli")]
    return {name: sorted(__import__(name, fromlist=["x"]).__all__) for name in modules}


def test_the_public_names_are_those_written_down() -> None:
    """A name that comes or goes is a decision: update tests/api_surface.json with it."""
    assert surface() == json.loads((ROOT / "tests" / "api_surface.json").read_text())


def test_every_public_name_is_documented() -> None:
    missing = []
    for module, names in surface().items():
        for name in names:
            value = getattr(__import__(module, fromlist=["x"]), name)
            if inspect.ismodule(value) or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if not inspect.getdoc(value):
                missing.append(f"{module}.{name}")
            if inspect.isclass(value):
                for attribute, member in vars(value).items():
                    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                    if inspect.isfunction(function) and not attribute.startswith("_") and not inspect.getdoc(function):
                        missing.append(f"{module}.{name}.{attribute}")
    assert missing == []


def test_imports_run_one_way() -> None:
    """Each folder knows only those before it in the table of the design."""
    wrong = []
    for path in FILES:
        folder = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if folder == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                parts = name.split(".")
                whole = parts == ["equidial"]
                if parts[0] != "equidial" or (whole and ORDER.index(folder) > ORDER.index("adapters")):
                    continue
                if whole or ORDER.index(parts[1]) > ORDER.index(folder):
                    wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert wrong == []


def test_the_library_prints_nothing_and_assumes_no_extras() -> None:
    for path in FILES:
        folder = path.relative_to(SOURCE).parts[0]
        text = path.read_text()
        if folder != "cli":
            assert not re.search(r"^\s*print\(", text, re.MULTILINE), path
        assert len(text.splitlines()) <= 400, f"{path} is long: split it, or say why here"
    probe = (
        "import sys, equidial;"
        "extras = {'transformers', 'matplotlib', 'sklearn', 'tyro', 'jinja2', 'timm', 'PIL', 'onnx', 'peft', 'optuna'};"
        "print(sorted(extras & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_versions_agree() -> None:
    assert f'version = "{equidial.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {equidial.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    """Every Python block of the README, in order, in one namespace and an empty folder."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
