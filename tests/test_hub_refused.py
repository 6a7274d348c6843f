"""A model that is none of ours is refused by its config.json, before its weights are fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from starcoder import formats, hub
from starcoder.errors import FormatError
from tests.helpers.fake_hub import ID, FakeHub, fails, starcoder


def change(served: FakeHub, **values: Any) -> None:
    config = json.loads(served.files["config.json"]) | values
    served.files["config.json"] = json.dumps(config).encode()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"model_type": "llama"}, "'llama'"),
    "GPTQ": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    "code of its own": ({"model_type": "x", "auto_map": {"AutoConfig": "c.C"}}, "auto_map"),
    "no number of layers": ({"n_layer": "two"}, "n_layer"),
}


@pytest.mark.parametrize(("values", "words"), REFUSED.values(), ids=REFUSED)
def test_only_config_json_of_a_model_that_it_refuses_is_fetched(
    served: FakeHub, values: dict[str, Any], words: str
) -> None:
    change(served, **values)
    for fetched in (["config.json"], []):  # the second time it is in the cache
        served.requests.clear()
        with pytest.raises(FormatError, match=words):
            hub.resolve(ID)
        assert [r.rpartition("/")[2] for r in served.requests[1:]] == fetched


def test_a_model_that_becomes_another_is_not_read_from_an_older_copy(served: FakeHub) -> None:
    hub.resolve(ID)
    served.commit = "f" * 40
    change(served, model_type="llama")
    served.files["model.safetensors"] += b"more"
    with pytest.raises(FormatError, match="'llama'"):
        hub.resolve(ID)


def test_a_gguf_file_is_fetched_whatever_the_config_json_beside_it_says(served: FakeHub) -> None:
    change(served, model_type="llama")
    served.files["tiny.q8_0.gguf"] = b"GGUF"
    assert hub.resolve(f"{ID}:q8_0").read_bytes() == b"GGUF"


def test_what_the_check_lets_through_is_what_is_read(served: FakeHub) -> None:
    path = hub.resolve(ID)
    formats.check_config(path)
    assert formats.read(path).config.n_layers == 2


def test_a_file_that_is_not_there_is_told_with_those_that_are(served: FakeHub) -> None:
    line = fails("no file nope.gguf", name=f"{ID}:nope.gguf")
    assert line.endswith("expected one of config.json, model.safetensors, tokenizer.json")
    served.files |= {"a-q4_0.gguf": b"GGUF", "b-q4_0.gguf": b"GGUF"}
    line = fails("no file nope.gguf", name=f"{ID}:nope.gguf")
    assert line.endswith("expected one of a-q4_0.gguf, b-q4_0.gguf")


def test_the_command_says_it_in_one_line(served: FakeHub, tmp_path: Path) -> None:
    change(served, model_type="llama")
    result = starcoder(served, tmp_path, "convert", ID, str(tmp_path / "out.gguf"))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "config.json: model_type: found 'llama', expected 'gpt_bigcode'" in line
    assert not any("safetensors" in request for request in served.requests)
