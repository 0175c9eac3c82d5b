"""The repository keeps its own rules: sizes, pins, contents, one version, nothing from outside."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gptoss_lite

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".cfg", ".cff", ".js", ".css", ".svg", ".bib", ""}


def _files() -> list[Path]:
    """List what git tracks or would; without git, everything that a checkout holds."""
    asked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in asked.stdout.splitlines() if (ROOT / name).is_file()]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}


def _toc_files() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *chapters]


def test_no_large_files():
    data = ROOT / "gptoss_lite" / "data"
    large = [
        f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes"
        for path in _files()
        if path.stat().st_size > 2**20 and not path.is_relative_to(data)
    ]
    assert not large


def test_bundled_data_fits_its_budget():
    total = sum(path.stat().st_size for path in (ROOT / "gptoss_lite/data").rglob("*"))
    assert total < 16_000_000


def test_no_paths_of_one_machine():
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in _files()
        if path.suffix in TEXT
        for match in re.finditer(r"(?<![\w.])/(?:home|Users)/[a-z]\w+|/root/\w+", path.read_text())
    ]
    assert not found


def test_pages_name_no_other_host_to_load_from():
    folders = [ROOT / "book/_static", ROOT / "book/_ext", ROOT / "gptoss_lite/widgets/assets"]
    ours = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".js", ".css", ".svg") and "mathjax" not in path.parts
    ]
    assert ours
    names = re.compile(r"https?://(?!www\.w3\.org/)[^\s\"')]+")
    assert not [(path.name, found) for path in ours if (found := names.findall(path.read_text()))]


@pytest.mark.parametrize("name", _toc_files())
def test_contents_exist(name: str):
    assert any((ROOT / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb"))


def test_every_page_is_in_the_contents():
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "chapters").glob("*.ipynb")]
    found = {path.relative_to(ROOT).with_suffix("").as_posix() for path in pages}
    assert found == set(_toc_files())


def test_one_version():
    assert "version" in PROJECT["project"]["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == gptoss_lite.__version__


def test_constraints_pin_every_requirement():
    pins = _pins()
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(r for group in extras.values() for r in group)]
    for requirement in map(Requirement, wanted):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow {pin}"


def test_constraints_suit_every_machine():
    pins = _pins()
    assert "torchvision" not in pins
    builds = [f"{name}=={pin}" for name, pin in pins.items() if "+" in pin]
    assert not builds, "a local version such as +cpu shuts out every other build"
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-"))]


def test_base_dependencies_are_floors():
    for requirement in map(Requirement, PROJECT["project"]["dependencies"]):
        assert {spec.operator for spec in requirement.specifier} == {">="}, str(requirement)


def test_wheel_takes_the_whole_package():
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert target == {"packages": ["gptoss_lite"]}
    assert (ROOT / "gptoss_lite/py.typed").is_file()
    for name in ("config.json", "tokenizer.json"):
        assert (ROOT / "gptoss_lite/data/gpt-oss-nano" / name).is_file()
    ignored = subprocess.run(
        ["git", "status", "--short", "--ignored", "--", "gptoss_lite/data"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "!!" not in ignored.stdout, "git ignores a data file, and so does the wheel"


def test_public_names_are_documented():
    assert len(gptoss_lite.__all__) <= 25
    tables = {"PRESETS", "LADDER"}  # values, described where they are defined
    for name in set(gptoss_lite.__all__) - tables:
        text = getattr(gptoss_lite, name).__doc__
        assert text, f"gptoss_lite.{name} has no docstring"
        assert len(text.split()) >= 4, f"gptoss_lite.{name}: {text!r}"


def test_import_does_not_bring_test_tools():
    banned = {"pytest", "transformers", "beartype", "hypothesis", "openai_harmony", "tiktoken"}
    for path in (ROOT / "gptoss_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            wrong = banned & {name.split(".")[0] for name in names}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_hooks_are_local():
    for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]:
        assert repo["repo"] == "local"
        assert all(hook["language"] == "system" for hook in repo["hooks"])


def test_workflows_need_no_secret():
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
        assert "secrets." not in path.read_text()


def test_make_targets_named_in_the_text_exist():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = ["README.md", "CONTRIBUTING.md", "book/intro.md", "book/how-to-read.md"]
    for page in pages:
        text = (ROOT / page).read_text()
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
        assert named <= targets, f"{page}: {named - targets}"


def test_code_in_the_readme_runs(capsys: pytest.CaptureFixture[str]):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert "47" in capsys.readouterr().out  # the answer that the first example asks for


def test_notebooks_import_nothing_beyond_the_package():
    allowed = {
        "gptoss_lite", "IPython", "ipywidgets", "matplotlib", "numpy", "safetensors", "torch",
    }  # fmt: skip
    for path in (ROOT / "chapters").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] != "code":
                continue
            source = "".join(cell["source"])
            for name in re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE):
                assert name in allowed | sys.stdlib_module_names, f"{path.name} imports {name}"
