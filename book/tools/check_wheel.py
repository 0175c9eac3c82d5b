"""Check that the wheel holds what users need: the bundled model, the type marker, the widgets.

Usage: `check_wheel.py dist`.
"""

import sys
import zipfile
from pathlib import Path

NEEDED = (
    "gptoss_lite/__init__.py",
    "gptoss_lite/py.typed",
    "gptoss_lite/data/gpt-oss-nano/config.json",
    "gptoss_lite/data/gpt-oss-nano/scores.json",
    "gptoss_lite/data/traces/add.safetensors",
)
MAX_BYTES = 24_000_000


def main(argv: list[str] | None = None) -> int:
    """Print what is wrong with the one wheel in the folder; return the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    folder = Path(arguments[0] if arguments else "dist")
    wheels = sorted(folder.glob("gptoss_lite-*.whl"))
    if len(wheels) != 1:
        print(f"check_wheel: {folder} holds {len(wheels)} wheels, expected 1", file=sys.stderr)
        return 1
    names = set(zipfile.ZipFile(wheels[0]).namelist())
    root = Path(__file__).resolve().parents[2]
    on_disk = {
        path.relative_to(root).as_posix()
        for path in (root / "gptoss_lite").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wrong = [f"missing: {name}" for name in sorted((on_disk | set(NEEDED)) - names)]
    wrong += [
        f"should not be there: {name}"
        for name in sorted(names)
        if not name.startswith(("gptoss_lite/", "gptoss_lite-"))
    ]
    size = wheels[0].stat().st_size
    if size > MAX_BYTES:
        wrong.append(f"{size:,} bytes, more than {MAX_BYTES:,}")
    for line in wrong:
        print(f"check_wheel: {line}")
    print(
        f"check_wheel: {wheels[0].name}, {size:,} bytes, {len(names)} files, {len(wrong)} problems"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
