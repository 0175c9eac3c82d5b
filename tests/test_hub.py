"""Finding models: names, folders, and downloads from a small hub that lives in this process."""

import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from gptoss_lite import hub
from gptoss_lite.errors import CheckpointError, TokenizerError
from gptoss_lite.presets import PRESETS
from tests.hostile import without_type_checks

OFFLINE = 'Without a network, use the bundled model "gpt-oss-nano".'
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = ["model-00000-of-00001.safetensors", "model-00001-of-00001.safetensors"]
REPO = "someone/tiny-oss"


def content(name: str, size: int) -> bytes:
    return (sha256(name.encode()).digest() * (size // 32 + 1))[:size]


FILES = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b'{"tokens": 1}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"# tiny",
    "pytorch_model.bin": b"pickle",
    "original/model.safetensors": content("original", 5000),
    "original/config.json": b"{}",
    "metal/model.bin": content("metal", 5000),
    SHARDS[0]: content("first", 40_000),
    SHARDS[1]: content("second", 60_000),
}
WEIGHT_FILES = {name for name in FILES if "/" not in name} - {"README.md", "pytorch_model.bin"}


class FakeHub(http.server.ThreadingHTTPServer):
    """Just enough of the hub's web interface for snapshot_download."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.error_code = ""
        self.lose_after: dict[str, int] = {}  # file: bytes to send before the line drops
        self.drops = 0  # how many times it drops
        self.log: list[tuple[str, str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> list[str]:
        """Return the files whose content was asked for."""
        found = (re.search(r"/resolve/\w+/(.*)", path) for how, path, _ in self.log if how == "GET")
        return [match[1] for match in found if match]


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.log.append((self.command, path, self.headers.get("Range", "")))
        file = re.fullmatch(rf"/{REPO}/resolve/\w+/(.*)", path)
        if self.server.status != 200:
            self.answer(self.server.status, b"", {"X-Error-Code": self.server.error_code})
        elif file:
            self.send_file(file[1])
        elif path.startswith(f"/api/models/{REPO}/tree"):
            self.send_json([entry(name) for name in FILES])
        elif path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            self.send_json({"id": REPO, "sha": COMMIT, "siblings": siblings})
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def send_file(self, name: str) -> None:
        data = FILES[name]
        first = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
        headers = {"ETag": f'"{entry(name)["oid"]}"', "X-Repo-Commit": COMMIT}
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        body, lost = data[first:], False
        if self.command == "GET" and name in self.server.lose_after and self.server.drops:
            self.server.drops -= 1
            body, lost = data[first : self.server.lose_after[name]], True
        self.answer(206 if "Range" in self.headers else 200, body, headers, len(data) - first)
        self.close_connection = lost

    def send_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(
        self, status: int, body: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


def entry(name: str) -> dict[str, Any]:
    oid = sha256(name.encode()).hexdigest()[:40]
    return {"type": "file", "path": name, "size": len(FILES[name]), "oid": oid}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    # The settings that HF_ENDPOINT, HF_HOME and the others give when the library is imported.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda s: None))
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        huggingface_hub.close_session()


def find(source: Any, want: Any = "weights") -> Path:
    return hub.find(source, want=want, progress=False)


def sentence_of(source: Any, want: Any = "weights", kind: Any = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        find(source, want)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- Downloads ----------------------------------------------------------------------------------


def test_only_the_files_needed_are_downloaded(fake: FakeHub) -> None:
    folder = find(REPO)
    assert {path.name for path in folder.iterdir()} == WEIGHT_FILES
    assert all((folder / name).read_bytes() == FILES[name] for name in WEIGHT_FILES)
    assert set(fake.fetched()) == WEIGHT_FILES
    assert not [path for _, path, _ in fake.log if "original/" in path or ".bin" in path]


@pytest.mark.parametrize(
    ("want", "names"),
    [
        ("tokenizer", {"tokenizer.json", "tokenizer_config.json"}),
        ("config", {"config.json", "generation_config.json"}),
    ],
)
def test_a_part_is_downloaded_alone(fake: FakeHub, want: str, names: set[str]) -> None:
    assert {path.name for path in find(REPO, want).iterdir()} == names
    assert set(fake.fetched()) == names


def test_a_second_call_downloads_nothing(fake: FakeHub) -> None:
    first = find(REPO)
    fake.log.clear()
    assert find(REPO) == first
    assert fake.fetched() == []


def test_a_short_drop_is_mended_in_the_same_call(fake: FakeHub) -> None:
    fake.lose_after, fake.drops = {SHARDS[1]: 25_000}, 1
    folder = find(REPO)
    assert (folder / SHARDS[1]).read_bytes() == FILES[SHARDS[1]]
    resumed = [span for _, path, span in fake.log if path.endswith(SHARDS[1]) and span]
    assert resumed == ["bytes=25000-"]


def test_a_broken_download_is_explained_and_goes_on_where_it_stopped(fake: FakeHub) -> None:
    fake.lose_after, fake.drops = {SHARDS[1]: 25_000}, 100
    message = sentence_of(REPO)
    assert re.fullmatch(
        rf"The download of {REPO} \(0\.0 GB\) broke off \(.+\): run the same call again, "
        rf"files that are complete are kept\. {re.escape(OFFLINE)}",
        message,
    )
    fake.drops = 0
    fake.log.clear()
    folder = find(REPO)
    assert SHARDS[0] not in fake.fetched()
    assert SHARDS[1] in fake.fetched()
    assert all((folder / name).read_bytes() == FILES[name] for name in WEIGHT_FILES)


def test_a_full_disk_is_noticed_before_the_download(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    monkeypatch.setitem(FILES, SHARDS[0], bytes(150_000_000))
    assert sentence_of(REPO) == (
        f"{REPO} needs 0.2 GB and {tmp_path / 'cache'} has 0.0 GB free: make room, or set HF_HOME "
        f"to a folder on a larger disk. {OFFLINE}"
    )
    assert fake.fetched() == []
    assert find(REPO, "config").is_dir()  # this much fits


def test_a_disk_that_fills_up_meanwhile_is_named(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert sentence_of(REPO) == (
        f"The disk of {tmp_path / 'cache'} became full while downloading {REPO} (0.0 GB). {OFFLINE}"
    )


def test_an_unknown_repository(fake: FakeHub) -> None:
    folder = Path("nobody/nothing").absolute()
    assert sentence_of("nobody/nothing") == (
        f"The hub has no public repository nobody/nothing, and there is no folder {folder}. "
        f"{OFFLINE}"
    )


def test_a_gated_repository(fake: FakeHub) -> None:
    fake.status, fake.error_code = 403, "GatedRepo"
    assert sentence_of(REPO) == (
        f"{REPO} is gated: accept its terms on its page and set HF_TOKEN. {OFFLINE}"
    )


def test_without_a_network_the_cache_is_used_or_named(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = find(REPO, "config")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fake.log.clear()
    assert find(REPO, "config") == config
    cache = tmp_path / "cache"
    assert sentence_of(REPO) == (
        f"{REPO} is not in {cache}, and HF_HUB_OFFLINE forbids a download. {OFFLINE}"
    )
    assert sentence_of("gpt-oss-20b") == (
        f"openai/gpt-oss-20b (13.8 GB) is not in {cache}, and HF_HUB_OFFLINE forbids a download. "
        f"{OFFLINE}"
    )
    assert fake.log == []


def test_a_hub_out_of_reach(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert re.fullmatch(
        rf"openai-community/gpt2 \(0\.5 GB\) is not in {tmp_path / 'cache'}, and "
        rf"http://127\.0\.0\.1:9 cannot be reached \(.+\)\. {re.escape(OFFLINE)}",
        sentence_of("gpt2"),
    )


def test_a_hub_in_trouble(fake: FakeHub, tmp_path: Path) -> None:
    config = find(REPO, "config")
    fake.status = 500
    assert find(REPO, "config") == config  # what is cached still works
    message = sentence_of(REPO)
    assert message.startswith(f"{REPO} is not in {tmp_path / 'cache'}, and {fake.url} cannot be")
    assert message.endswith(OFFLINE)


# --- Names and folders --------------------------------------------------------------------------


def test_every_preset_has_a_place() -> None:
    assert {hub.BUNDLED, *hub.REPOS} == set(PRESETS)


def test_the_bundled_model_is_in_the_package() -> None:
    folder = find("gpt-oss-nano", "tokenizer")
    assert (folder / "tokenizer.json").is_file()
    assert folder.parts[-3:] == ("gptoss_lite", "data", "gpt-oss-nano")


def test_folders_in_both_layouts(tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    (original / "model.safetensors").touch()
    (original / "config.json").touch()
    (tmp_path / "tokenizer.json").touch()
    assert find(tmp_path) == original
    assert find(str(original)) == original
    assert find(tmp_path, "config") == original
    assert find(original, "tokenizer") == tmp_path
    (tmp_path / "model.safetensors").touch()
    assert find(tmp_path) == tmp_path


def test_a_folder_without_weights_is_listed(tmp_path: Path) -> None:
    for name in ["pytorch_model.bin", "config.json"]:
        (tmp_path / name).touch()
    assert sentence_of(tmp_path) == (
        f"There is no *.safetensors in {tmp_path} or {tmp_path / 'original'}, which holds "
        f"config.json, pytorch_model.bin. {OFFLINE}"
    )
    assert "There is no tokenizer.json in" in sentence_of(tmp_path, "tokenizer", TokenizerError)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    assert sentence_of(path) == f"{path} is a file: give the folder that holds it."


def test_no_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert sentence_of("") == (
        f'"" is no model: use {", ".join((hub.BUNDLED, *hub.REPOS))}, a folder ("." is the current '
        'one), or a hub id like "openai/gpt-oss-20b".'
    )
    assert hub.find(".") == tmp_path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x" * 5_000, f"'{'x' * 79}...' cannot be looked up: File name too long."),
        (Path("y" * 5_000), f"'{'y' * 79}...' cannot be looked up: File name too long."),
        ("~nosuchuser/x", "'~nosuchuser/x' names no folder: Could not determine home directory."),
        (20, "20 names no folder: it is int, neither str nor Path."),
        (None, "None names no folder: it is NoneType, neither str nor Path."),
    ],
    ids=["long text", "long path", "no such user", "number", "nothing"],
)
def test_what_cannot_be_a_place(source: Any, message: str) -> None:
    with without_type_checks():
        assert sentence_of(source) == f"{message} {OFFLINE}"


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    place = str(tmp_path)[:20]
    assert sentence_of(tmp_path).startswith(f"'{place}")
    assert sentence_of(tmp_path).endswith(f" cannot be looked up: Permission denied. {OFFLINE}")


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    missing = tmp_path / "models" / "gpt-oss"
    assert sentence_of(str(missing)) == f"There is no folder {missing}. {OFFLINE}"
    assert sentence_of(missing) == f"There is no folder {missing}. {OFFLINE}"


@pytest.mark.parametrize("name", ["gpt-oss-nano", "gpt2"])
def test_a_path_that_is_the_name_of_a_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence_of(Path(name)) == (
        f"There is no folder {tmp_path / name}, and a Path is always a folder. "
        f'For the model, give its name as a string: "{name}".'
    )
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").touch()
    assert hub.find(Path(name)) == tmp_path / name
    assert sentence_of(Path("gpt-oss-20")) == f"There is no folder {tmp_path}/gpt-oss-20. {OFFLINE}"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("gpt-oss-20", "gpt-oss-20b"), ("GPT2-Large", "gpt2-large"), ("gpt-oss-nan", "gpt-oss-nano")],
)
def test_a_typing_mistake_suggests_the_nearest_name(typed: str, meant: str) -> None:
    names = ", ".join([hub.BUNDLED, *hub.REPOS])
    assert sentence_of(typed) == (
        f'"{typed}" is no model: did you mean "{meant}"? Use {names}, a folder '
        f'(there is none at {Path(typed).absolute()}), or a hub id like "openai/gpt-oss-20b".'
    )
    assert "did you mean" not in sentence_of("llama")
