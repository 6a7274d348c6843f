"""CTranslate2 with a model of the same shape: random weights in int8, one scale for each row."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec

PROGRAM = f"CTranslate2 {ctranslate2.__version__}"


class CTranslate2:
    """One model; what lies before the depth is a static prompt, whose state it keeps."""

    note = "int8"

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self._generator = ctranslate2.Generator(
            str(folder), compute_type="int8", intra_threads=settings["n_threads"]
        )
        self._n_prompt, self._n_decode = settings["n_prompt"], settings["n_decode"]
        self._batch, depth = settings["batch"], settings["depth"]
        n = depth + max(self._n_prompt, self._n_decode)
        ids = np.random.default_rng(0).integers(1, settings["n_vocab"], n)
        words = [f"t{i}" for i in ids]
        self._before, self._words = words[:depth], words[depth:]

    def prompt(self) -> float:
        """Seconds for the prompt, after the depth; its last step chooses a token."""
        return self._run([self._words[: self._n_prompt]], 1)

    def decode(self) -> float:
        """Seconds for the tokens one by one, after the depth."""
        return self._run([self._words[:1]] * self._batch, self._n_decode)

    def _run(self, prompts: list[list[str]], n: int) -> float:
        start = time.perf_counter()
        self._generator.generate_batch(
            prompts,
            max_length=n,
            min_length=n,
            sampling_topk=1,
            include_prompt_in_result=False,
            static_prompt=self._before or None,
        )
        return time.perf_counter() - start


def load(settings: dict[str, Any]) -> CTranslate2:
    """Writes the model, loads it, and warms up."""
    if settings["architecture"] != "gpt_bigcode":
        raise ValueError("this comparison knows GPTBigCode only")
    if settings["n_kv_heads"] != 1:
        raise ValueError("this comparison knows one head of keys and values only")
    folder = Path(settings["folder"], "ctranslate2")
    folder.mkdir(exist_ok=True)
    spec = _spec(settings)
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    program = CTranslate2(settings, folder)
    program.prompt()
    program.decode()
    return program


def _spec(settings: dict[str, Any]) -> transformer_spec.TransformerDecoderModelSpec:
    dim, hidden_dim = settings["dim"], settings["hidden_dim"]
    qkv_dim = dim + 2 * dim // settings["n_heads"]
    rng = np.random.default_rng(0)
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        settings["n_layers"],
        settings["n_heads"],
        pre_norm=True,
        activation=common_spec.Activation.GELUTanh,
        multi_query_attention=True,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    for table in (decoder.embeddings, decoder.projection):  # equal ones are stored once
        _fill(table, (settings["n_vocab"], dim), np.random.default_rng(1))
    positions = rng.normal(0, 0.02, (settings["n_ctx"], dim)).astype(np.float32)
    decoder.position_encodings.encodings = positions
    _norm(decoder.layer_norm, dim)
    for layer in decoder.layer:
        for linear, shape in (
            (layer.self_attention.linear[0], (qkv_dim, dim)),
            (layer.self_attention.linear[1], (dim, dim)),
            (layer.ffn.linear_0, (hidden_dim, dim)),
            (layer.ffn.linear_1, (dim, hidden_dim)),
        ):
            _fill(linear, shape, rng)
            linear.bias = np.zeros(shape[0], np.float32)
        _norm(layer.self_attention.layer_norm, dim)
        _norm(layer.ffn.layer_norm, dim)
    spec.register_vocabulary([f"t{i}" for i in range(settings["n_vocab"])])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "t0"
    return spec


def _fill(spec: Any, shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Weights of about 0.02, already in int8; no two tensors are equal, or they would be one."""
    spec.weight = rng.integers(-127, 128, shape, np.int8)
    spec.weight_scale = rng.uniform(3000, 4000, shape[0]).astype(np.float32)


def _norm(spec: Any, dim: int) -> None:
    spec.gamma, spec.beta = np.ones(dim, np.float32), np.zeros(dim, np.float32)
