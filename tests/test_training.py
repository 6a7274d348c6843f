"""The recipe of the small model, run for a toy: the grid, learning, export, all stages."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.helpers.training import ADD, small_tokenizer
from training import corpus
from training.corpus import File


@pytest.fixture
def bpe() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is for training alone")


@pytest.fixture
def small(torch: Any) -> Any:
    from training.model import GPTBigCode
    from training.shape import Shape

    torch.manual_seed(1)
    return GPTBigCode(Shape(32, 2, 2, 64, 128, 512))


def test_the_grid_is_what_quantizing_makes(torch: Any, small: Any) -> None:
    from training import grid

    weights = torch.randn(8, 64) * torch.logspace(-9, 2, 8)[:, None]
    weights[3, :32] = 0
    rounded = grid.q4_0(weights)
    assert torch.equal(grid.q4_0(rounded), rounded), "what is on the grid stays there"
    assert torch.equal(rounded[3, :32], torch.zeros(32))
    leaf = weights.clone().requires_grad_()
    (grid.straight_through(leaf) * weights).sum().backward()
    assert torch.equal(leaf.grad, weights)
    names = [n for n, p in small.named_parameters() if grid.is_on_grid(n, p)]
    assert len(names) == 8


def test_a_toy_learns_and_logs_it_and_is_the_same_again(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.shape import Shape
    from training.train import Plan, train

    monkeypatch.setattr("training.model.GPTBigCode.compile", lambda self, dynamic: None)
    plan = Plan(Shape(32, 2, 2, 64, 16, 128), updates=24, rows=4, micro_rows=3, warmup=2)
    epochs = [tmp_path / f"rows-{epoch}.npy" for epoch in range(2)]
    for epoch, path in enumerate(epochs):
        np.save(path, (np.arange(17)[None] + np.arange(50)[:, None] + epoch).astype(np.uint16))
    dev = np.load(epochs[0])[:5]
    states = []
    for name in ("a.pt", "b.pt"):
        train(plan, epochs, dev, 3.0, tmp_path / name)
        states.append(torch.load(tmp_path / name, weights_only=True)["model"])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    machine, *log = (json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines())
    assert machine["device"]
    bits = [entry["dev_bpb"] for entry in log if "dev_bpb" in entry]
    assert len(bits) == 8
    assert bits[-1] < bits[0]
    assert log[-1]["tokens"] == 24 * 4 * 16
    with pytest.raises(ValueError, match="take fewer updates"):
        train(replace(plan, updates=25), epochs, dev, 3.0, tmp_path / "c.pt")


def test_what_is_exported_is_the_model_on_the_grid(
    torch: Any, bpe: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="it is a check on the directory")
    from starcoder import LLM
    from training.export import export
    from training.model import GPTBigCode
    from training.shape import Shape

    shape = Shape(256, 1, 4, 512, 64, bpe.get_vocab_size())
    torch.manual_seed(1)
    model = GPTBigCode(shape)
    model.set_rounded(True)
    torch.save({"shape": asdict(shape), "model": model.state_dict()}, tmp_path / "trained.pt")
    bpe.save(str(tmp_path / "tokenizer.json"))
    paths = [tmp_path / f"starcoder-pocket-{name}.gguf" for name in ("q4_0", "q8_0")]
    export(tmp_path / "trained.pt", tmp_path / "tokenizer.json", paths)
    ids = bpe.encode(ADD).ids[:48]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "starcoder-pocket", dtype=torch.float32
    )
    with torch.no_grad():
        trained = model.logits(model(torch.tensor([ids])))[0].numpy()
        loaded = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(trained - loaded).max() < 2e-3
    ours = LLM(paths[0])
    assert ours.facts.type_name == "q4_0"
    assert ours.tokenize(ADD)[:48] == ids
    assert np.abs(ours.logits(ids) - trained).max() < 0.1, "the embedding alone is rounded"


def test_all_stages_make_a_toy(torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import __main__ as stages
    from training import train

    monkeypatch.setattr("training.model.GPTBigCode.compile", lambda self, dynamic: None)
    monkeypatch.setattr(train, "TOY", replace(train.TOY, updates=2, rows=1))
    monkeypatch.setattr(stages, "EPOCHS", 1)
    monkeypatch.setattr(stages, "read", lambda work, split, tiny: corpus.read_split(work, split))
    (tmp_path / "corpus").mkdir()

    def text(rng: random.Random) -> str:
        names = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(40)]
        return "".join(ADD.replace("total", name).replace("add", name + "_") for name in names)

    rng = random.Random(1)
    for split in corpus.SPLITS:
        files = [File("p", f"{i}.py", text(rng)) for i in range(20)]
        lines = "".join(json.dumps(asdict(file)) + "\n" for file in files)
        (tmp_path / "corpus" / f"{split}.jsonl").write_text(lines)
    for _ in range(2):  # the second time all is there
        assert stages.main(["--work", str(tmp_path), "--until", "export", "--tiny"]) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert {"trained.pt", "trained.jsonl", "starcoder-pocket-q8_0.gguf"} <= made
    assert (tmp_path / "trained.jsonl").read_text().count("\n") == 3
