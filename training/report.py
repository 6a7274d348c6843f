"""Measure a finished run, and gather what the model card says into one JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starcoder import LLM
from training import corpus, measure
from training.export import check_transformers

N_FUNCTIONS, N_LINES = 200, 300


def write(work: Path, paths: dict[str, Path], out: Path) -> None:
    """Measure the exported models on the held-out packages and write `out`.

    Args:
        work: The work folder of the run.
        paths: The exported models, as `export.export` returns them.
        out: The JSON file to write.
    """
    files = corpus.read_split(work, "test")
    packaged = LLM(paths["q8_0"])
    figures = {
        "wheel_bytes": paths["q8_0"].stat().st_size,
        "transformers": check_transformers(paths, files[0].text),
        "bits_per_byte": {
            "this model, Q8_0": measure.bits_per_byte(packaged, files),
            "this model, F32": measure.bits_per_byte(LLM(paths["f32"]), files),
            **measure.xz_bits_per_byte(files),
        },
        "functions": measure.complete_functions(packaged, measure.functions(files, N_FUNCTIONS)),
        "lines": measure.fill_lines(packaged, measure.lines(files, N_LINES)),
        "training": _training(work),
        "log": _log(work / "run" / "log.jsonl"),
        "rounds": [
            json.loads(line) for line in (work / "run" / "refine.jsonl").read_text().splitlines()
        ],
    }
    out.write_text(json.dumps(figures, indent=1) + "\n")


def _training(work: Path) -> dict[str, Any]:
    """What was trained, and for how long."""
    import torch

    state = torch.load(work / "run" / "refined.pt", weights_only=True)
    plan = state["plan"]
    phases = plan["phases"]
    n_parameters = sum(tensor.numel() for tensor in state["model"].values())
    return {
        "parameters": f"{n_parameters / 1e6:.1f} million",
        "steps": f"{sum(phase['steps'] for phase in phases):,}",
        "phases": ", then ".join(
            f"{phase['steps']:,} of {phase['rows']} rows of {phase['context']:,} tokens"
            for phase in phases
        ),
        "tokens": f"{sum(p['steps'] * p['rows'] * p['context'] for p in phases) / 1e6:.1f} million",
        "gaps": f"{sum(p['steps'] * p['gaps'] for p in state['course']['phases']):,}",
        "fill_steps": f"{sum(p['steps'] for p in state['course']['phases']):,}",
        "minutes": f"{state['seconds'] / 60:.0f}",
        "precision": "bf16, weights and residual stream in f32" if plan["bf16"] else "f32",
        "matrix_lr": plan["matrix_lr"],
        "other_lr": plan["other_lr"],
        "warmup": plan["warmup"],
    }


def _log(path: Path) -> list[dict[str, Any]]:
    """Training and development loss wherever the log has both."""
    points: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        points.setdefault(entry["step"], {}).update(entry)
    return [point for point in points.values() if "dev_bpb" in point and "loss" in point]
