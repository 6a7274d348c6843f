"""The names that people have for a model: ids, types, files, revisions, `hf://` and URLs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from starcoder import LLM, formats, hub
from starcoder.hub._choice import UnfitError, choose
from starcoder.hub._library import HubError, hosts
from starcoder.hub._names import Name, parse
from tests.helpers.fake_hub import COMMIT, ID, FakeHub, fails, starcoder
from tests.helpers.hf import write_hf
from tests.helpers.tiny import TinyModel


@pytest.fixture
def served(fake: FakeHub, tmp_path: Path, tiny: TinyModel) -> FakeHub:
    """A repository of GGUF files: a whole one, one in two parts, and one of another type."""
    checkpoint = formats.read(write_hf(tmp_path / "served", tiny))
    formats.write(tmp_path / "m.gguf", checkpoint)
    raw = (tmp_path / "m.gguf").read_bytes()
    fake.files = {
        "README.md": b"#",
        "tiny.Q8_0.gguf": raw,
        "tiny-q4_k_m-00001-of-00002.gguf": b"first",
        "tiny-q4_k_m-00002-of-00002.gguf": b"second",
        "F16/tiny.gguf": b"f16",
    }
    return fake


# ------------------------------------------------------------------------------------------------
# Spellings


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> str:
    """A host that HF_ENDPOINT names."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example:8443/")
    return "hub.example:8443"


NAMES = {
    "o/n": ("o/n", None, None),
    "o/n/": ("o/n", None, None),
    " o/n \n": ("o/n", None, None),
    "o/n.git": ("o/n", None, None),
    "o/n@v1.0": ("o/n", "v1.0", None),
    "o/n@refs/pr/1": ("o/n", "refs/pr/1", None),
    "o/n:q4_0": ("o/n", None, "q4_0"),
    "o/n:Q4_K_M": ("o/n", None, "Q4_K_M"),
    "o/n:file.gguf": ("o/n", None, "file.gguf"),
    "o/n:folder/file.gguf": ("o/n", None, "folder/file.gguf"),
    "o/n@v1:q4_0": ("o/n", "v1", "q4_0"),
    "hf://o/n": ("o/n", None, None),
    "HF://o/n/": ("o/n", None, None),
    "hf:/o/n": ("o/n", None, None),
    "hf://o/n@main": ("o/n", "main", None),
    "hf://o/n@refs/pr/1": ("o/n", "refs/pr/1", None),
    "hf://o/n@refs%2Fpr%2F1/f.gguf": ("o/n", "refs/pr/1", "f.gguf"),
    "hf://o/n@v1/a/f.gguf": ("o/n", "v1", "a/f.gguf"),
    "hf://o/n/f.gguf": ("o/n", None, "f.gguf"),
    "hf://o/n:q4_0": ("o/n", None, "q4_0"),
    "hf://o/n@v1:q4_0": ("o/n", "v1", "q4_0"),
    "hf://o/model.gguf": ("o/model.gguf", None, None),
    "https://HOST/o/n": ("o/n", None, None),
    "https://HOST/o/n/": ("o/n", None, None),
    " https://HOST/o/n ": ("o/n", None, None),
    "https://HOST/o/n.git": ("o/n", None, None),
    "https://HOST/o/n.git/": ("o/n", None, None),
    "HTTP://host/o/n?x=1#y": ("o/n", None, None),
    "https:/HOST/o/n": ("o/n", None, None),
    "HOST/o/n": ("o/n", None, None),
    "https://user:secret@HOST/o/n": ("o/n", None, None),
    "https://HOST/o/n/tree/main": ("o/n", "main", None),
    "https://HOST/o/n/tree/refs%2Fpr%2F1": ("o/n", "refs/pr/1", None),
    "https://HOST/o/n/blob/main/f.Q4_0.gguf": ("o/n", "main", "f.Q4_0.gguf"),
    "https://HOST/o/n/resolve/v1/a/f.gguf?download=true": ("o/n", "v1", "a/f.gguf"),
    "https://HOST/o/n/blob/main/my%20file.gguf": ("o/n", "main", "my file.gguf"),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_understood(host: str, text: str) -> None:
    repo, revision, wanted = NAMES[text]
    text = text.replace("HOST", host).replace("host", host)
    found = parse(text)
    is_plain = text.strip() in ("o/n", "o/n/", "o/n.git")
    assert found == Name(text.strip(), repo, revision, wanted, is_plain)


def test_the_library_s_own_host_is_one_too(host: str) -> None:
    from huggingface_hub import constants

    assert host in hosts()
    name = parse(constants.HUGGINGFACE_CO_URL_HOME + "o/n/tree/main")
    assert isinstance(name, Name)
    assert name[1:3] == ("o/n", "main")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://other.example/o/n", "a URL of another host"),
        ("https://evil.example@x.example/o/n", "a URL of another host"),
        ("https://HOST/datasets/o/n", "no name of a model"),
        ("https://HOST/spaces/o/n", "no name of a model"),
        ("https://HOST/o", "no name of a model"),
        ("https://HOST/", "no name of a model"),
        ("https://", "another host"),
        ("https://HOST/o/n/discussions/1", "no name of a model"),
        ("https://HOST/o/n/tree/main/folder", "a folder of a model"),
        ("hf://", "no name of a model"),
        ("hf://o", "no name of a model"),
        ("hf://../../x", "no name of a model"),
        ("hf://o/n@", "no name of a model"),
        ("hf://o/n@..", "a branch, tag or commit"),
        ("hf://o/n@%2e%2e%2fx", "a branch, tag or commit"),
        ("hf://o/n\x1b[2J", "no name of a model"),
    ],
)
def test_what_is_no_model_is_refused_without_asking(
    fake: FakeHub, host: str, text: str, words: str
) -> None:
    fails(words, name=text.replace("HOST", host))
    assert fake.requests == []


@pytest.mark.parametrize(
    "text",
    ["o/n.gguf", "o/n/f.gguf", "o/n/m", "./o/n", "/o/n", "o\\n", "o/n@", "o/n:", "n:q4_0", "~"],
)
def test_a_path_stays_a_path(fake: FakeHub, text: str) -> None:
    assert hub.resolve(text) == Path(text)
    assert fake.requests == []


def test_what_exists_is_a_path_whatever_it_is_called(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("o/n:q4_0", "o/n@v1", "o/n"):
        Path(name).mkdir(parents=True)
        assert hub.resolve(name) == Path(name)
    assert fake.requests == []


def test_revisions_that_contradict_each_other_are_refused(served: FakeHub) -> None:
    fails("found 'v1' in owner/tiny-model@v1 and 'v2' beside it", name=f"{ID}@v1", revision="v2")
    path = hub.resolve(f"{ID}@main:q8_0", revision="main")
    assert path == hub.resolve(f"{ID}:q8_0", revision=COMMIT)
    fails("no revision 'v9'", name=f"{ID}@v9:q8_0")


# ------------------------------------------------------------------------------------------------
# Which file is meant


def test_a_gguf_file_is_found_by_its_type(served: FakeHub, tmp_path: Path) -> None:
    path = hub.resolve(f"{ID}:q8_0")
    assert path.name == "tiny.Q8_0.gguf"
    assert path == hub.resolve(f"hf://{ID}:Q8_0") == hub.resolve(f"{ID}:tiny.q8_0.GGUF")
    assert path == hub.resolve(f"{served.url}/{ID}/blob/main/tiny.Q8_0.gguf")
    assert formats.read(path) == formats.read(tmp_path / "m.gguf")
    assert [p.name for p in path.parent.iterdir()] == ["tiny.Q8_0.gguf"]


def test_all_parts_of_a_file_come_and_the_first_is_opened(served: FakeHub) -> None:
    path = hub.resolve(f"{ID}:q4_k_m")
    assert path.read_bytes() == b"first"
    assert path.with_name("tiny-q4_k_m-00002-of-00002.gguf").read_bytes() == b"second"
    assert path == hub.resolve(f"{ID}:tiny-q4_k_m-00002-of-00002.gguf") == hub.resolve(f"{ID}:q4_k")
    del served.files["tiny-q4_k_m-00001-of-00002.gguf"]
    served.commit = "f" * 40
    fails("no part 1 of 2 of tiny-q4_k_m.gguf", name=f"{ID}:q4_k_m", revision="f" * 40)


def test_a_file_in_a_folder_keeps_its_place(served: FakeHub) -> None:
    path = hub.resolve(f"{ID}:f16")
    assert path.read_bytes() == b"f16"
    assert path.parts[-2:] == ("F16", "tiny.gguf")


def test_without_a_type_the_error_lists_what_there_is(served: FakeHub) -> None:
    fails("GGUF files of f16, q4_k_m, q8_0", "owner/name:TYPE")
    fails("no file of q5_0, expected one of f16, q4_k_m, q8_0", name=f"{ID}:q5_0")
    assert len(served.requests) == 2
    hub.resolve(f"{ID}:q8_0")
    fails("GGUF files of f16, q4_k_m, q8_0")  # one of them in the cache decides nothing


def test_offline_the_copy_of_a_type_serves_for_that_type(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    path = hub.resolve(f"{ID}:q8_0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.resolve(f"{ID}:q8_0") == hub.resolve(ID) == path
    fails("tiny.Q8_0.gguf in the cache, but no file of q5_0", "HF_HUB_OFFLINE", name=f"{ID}:q5_0")


def test_offline_several_types_are_listed_too(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    for wanted in ("q8_0", "f16"):
        hub.resolve(f"{ID}:{wanted}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fails("GGUF files of f16, q8_0, expected one of them").count("OFFLINE") == 0


HF = ("config.json", "tokenizer.json", "model.safetensors")
CHOICES: dict[str, tuple[tuple[str, ...], str | None, str | None]] = {
    # names there are, what is wanted, the entry
    "the only GGUF file": (("m.gguf", "README.md"), None, "m.gguf"),
    "GGUF beside a directory": ((*HF, "m.q4_0.gguf"), None, None),
    "a type beside a directory": ((*HF, "m.q4_0.gguf"), "q4_0", "m.q4_0.gguf"),
    "a file of a directory": (HF, "model.safetensors", None),
    "upper case": (("M.Q5_K_S.GGUF", "M.Q5_K_M.GGUF"), "q5_k_s", "M.Q5_K_S.GGUF"),
    "a short name": (("m-q5_k_s.gguf", "m-q5_k_m.gguf"), "q5_k", "m-q5_k_m.gguf"),
    "a longer name": (("m.q4_0_4_4.gguf", "m.q4_0.gguf"), "q4_0", "m.q4_0.gguf"),
    "fp16": (("m-fp16.gguf", "m-bf16.gguf"), "f16", "m-fp16.gguf"),
    "iq4_nl": (("m-iq4_nl.gguf", "m-iq4_xs.gguf"), "IQ4_NL", "m-iq4_nl.gguf"),
    "a type as a folder": (("q4_0/m.gguf", "q8_0/m.gguf"), "q8_0", "q8_0/m.gguf"),
    "a folder of parts": (
        ("Q4_0/m-00002-of-00002.gguf", "Q4_0/m-00001-of-00002.gguf"),
        "q4_0",
        "Q4_0/m-00001-of-00002.gguf",
    ),
    "ggml's files": (("m-ggml-q4_0.bin", "m-ggml-q8_0.bin"), "q8_0", "m-ggml-q8_0.bin"),
    "GGUF before ggml": (("m-q4_0.bin", "m-q4_0.gguf"), "q4_0", "m-q4_0.gguf"),
    "a file by its name": (("a-q4_0.gguf", "b-q4_0.gguf"), "b-q4_0.gguf", "b-q4_0.gguf"),
}


@pytest.mark.parametrize(("names", "wanted", "entry"), CHOICES.values(), ids=CHOICES)
def test_the_file_that_is_meant_is_chosen(
    names: tuple[str, ...], wanted: str | None, entry: str | None
) -> None:
    chosen = choose(names, wanted)
    assert chosen.entry == entry
    assert set(chosen.names) <= set(names)


REFUSALS: dict[str, tuple[tuple[str, ...], str | None, str]] = {
    "two of a type": (("a-q4_0.gguf", "b-q4_0.gguf"), "q4_0", "2 files of q4_0: a-q4_0.gguf, b-q4"),
    "no GGUF": (HF, "q4_0", "no GGUF files"),
    "no file of that name": (HF, "nope.gguf", "no file nope.gguf"),
    "no file of that name of several": (("a-q4_0.gguf",), "b.gguf", "no file b.gguf"),
    "a name outside": (("../q4_0.gguf", "/q4_0.gguf", "a/../q4_0.gguf"), "q4_0", "no GGUF files"),
    "names to hide in": (("a\n-q4_0.gguf", "\x1b-q4_0.gguf"), "q4_0", "no GGUF files"),
    "a missing part": (("m-00001-of-00003.gguf", "m-00003-of-00003.gguf"), None, "no part 2 of 3"),
    "nothing": (("README.md",), None, "no config.json"),
    "an adapter": (("adapter_config.json", "adapter_model.safetensors"), None, "an adapter"),
    "a missing shard": (
        ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"),
        None,
        "no model-00002-of-00002.safetensors",
    ),
}


@pytest.mark.parametrize(("names", "wanted", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_meant_is_told(
    names: tuple[str, ...], wanted: str | None, words: str
) -> None:
    with pytest.raises(HubError, match=words):
        choose(names, wanted)


def test_a_long_list_is_cut() -> None:
    names = [f"m{i}.gguf" for i in range(100)]
    with pytest.raises(UnfitError, match=r"m0\.gguf, .* and 88 more$"):
        choose(names)


def test_weights_of_which_all_are_there_are_chosen() -> None:
    base = ("config.json", "tokenizer.json")
    index = "model.safetensors.index.json"
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert choose((*base, *shards)).names == [*base, *shards]
    assert set(choose((*base, *shards, index)).names) == {*base, *shards, index}
    assert choose((*base, *shards, index, "model.safetensors")).names == [*base, HF[2]]
    assert choose((*base, shards[0], index, "pytorch_model.bin")).names[-1] == "pytorch_model.bin"


def test_vocab_and_merges_serve_for_the_tokenizer() -> None:
    names = ("config.json", "vocab.json", "merges.txt", "added_tokens.json", "model.safetensors")
    assert set(choose(names).names) == set(names)
    assert "vocab.json" not in choose((*names, "tokenizer.json")).names


# ------------------------------------------------------------------------------------------------
# Front ends


def test_every_command_takes_a_name(served: FakeHub, tmp_path: Path) -> None:
    options = ("-p", "def", "-n", "1", "-t", "1")
    out = str(tmp_path / "out.gguf")
    for command in (
        ("-m", f"{ID}:q8_0", *options),
        ("convert", f"hf://{ID}/tiny.Q8_0.gguf", out, "--type", "f16", "-t", "1"),
        ("quantize", f"{ID}:q8_0", out, "q4_0", "-t", "1"),
        ("inspect", f"{ID}:q8_0", "--json"),
    ):
        result = starcoder(served, tmp_path, *command)
        assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["format"].startswith("GGUF")
    assert formats.read(out).type_name == "q4_0"


def test_a_model_is_made_and_measured_by_its_name(served: FakeHub) -> None:
    from starcoder.bench import sources

    (source,) = sources.find(f"{ID}@main:q8_0", None, None, None)
    assert source.open()[0].source.endswith("tiny.Q8_0.gguf")
    assert LLM(f"{ID}:q8_0", n_threads=1).generate("def", max_tokens=1).prompt_tokens
