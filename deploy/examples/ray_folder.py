"""Prepare a folder of clips on the CPUs of a Ray cluster, for offline inference; no service is needed.

python ray_folder.py MODEL CLIPS RESULTS "What happens?"         # on a machine of the cluster, or alone

Folders are on storage that all machines share. Of CLIPS/b.mp4 the tensors are written to RESULTS/b.mp4.safetensors, which
`to_vllm.py` reads. Clips that have a result are left out, so it may be started again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray
from safetensors.numpy import save_file

from preprocessor import pipeline
from preprocessor.errors import PreprocessorError
from preprocessor.models.registry import load_model
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PreparationRequest,
    Sampling,
    TextPart,
)


class Prepare:
    """A stage of Ray Data: one on each CPU, which loads the model's tokenizer and settings once."""

    def __init__(self, model: str, results: str, question: str) -> None:
        self.model, self.results = load_model(model), Path(results)
        self.prompt = ChatPrompt((Message("user", (MediaPart("clip"), TextPart(question))),))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        clip = Path(row["path"])
        media = (Media("clip", Modality.VIDEO, clip.read_bytes(), Sampling(fps=2)),)
        try:
            prepared = pipeline.prepare(self.model, PreparationRequest(self.prompt, media))
        except PreprocessorError as error:  # one bad clip does not end the others
            return {"clip": clip.name, "tokens": 0, "error": f"{error.reason}: {error}"}
        part = self.results / f"{clip.name}.part"
        save_file(dict(prepared.tensors), part)
        part.rename(part.with_suffix(".safetensors"))
        return {"clip": clip.name, "tokens": len(prepared.tensors["input_ids"]), "error": ""}


def main(model: str, clips: str, results: str, question: str) -> None:
    Path(results).mkdir(parents=True, exist_ok=True)
    waiting = [
        {"path": str(path.resolve())}
        for path in sorted(Path(clips).iterdir())
        if path.suffix.lower() == ".mp4" and not (Path(results) / f"{path.name}.safetensors").exists()
    ]
    if not waiting:
        print("nothing to do")
        return
    ray.init(runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}})  # a stage has one CPU
    workers = int(ray.cluster_resources()["CPU"])
    made = ray.data.from_items(waiting, override_num_blocks=len(waiting)).map(
        Prepare,
        fn_constructor_args=(model, str(Path(results).resolve()), question),
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
    )
    for row in made.iter_rows():
        print(f"{row['clip']}: {row['error'] or str(row['tokens']) + ' tokens'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
