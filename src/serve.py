"""Serve an SAE over HTTP: `python -m src.serve data/sae/9`, then http://127.0.0.1:8000."""

import os
from contextlib import suppress
from pathlib import Path

from apps.serve.app import make_app
from apps.serve.explainer import Explainer, open_explainer
from apps.serve.guard import Gate
from apps.serve.listening import config, is_loopback
from strata import sentences
from strata.device.machine import Machine, start
from strata.run.door import BadInput, run, whole_number
from strata.run.files import absolute


def main(
    sae: str, lm: str = "", latents: str = "", pages: str = "", port: str = "8000", host: str = "127.0.0.1"
) -> None:
    """SAE: its folder, or an encoder.npz. LM, LATENTS, PAGES: folders that fetch, interpret and report wrote; by
    default those beside it in the project. LM may also be any sentence-transformers model: a folder or package:NAME.
    With STRATA_TOKEN set, requests must carry it. STRATA_HOSTS: more names of the server, with commas between them.

    Example: python -m src.serve data/sae/9
    """
    folder = absolute(Path(sae))
    data = folder.parent.parent
    whole_number(port, "the port", 1, 65535)
    token = os.environ.get("STRATA_TOKEN") or None
    if not is_loopback(host) and token is None:
        raise BadInput(f"to listen on {host}, where others can reach it, set STRATA_TOKEN")

    model = sentences.find(lm) if lm else data / "lm"
    if model is None or (lm and not any((model / name).exists() for name in ("meta.json", "modules.json"))):
        raise BadInput(f"{lm} is neither a folder that fetch wrote nor a sentence-transformers model")
    gate = Gate()

    def opened() -> Explainer:
        device = start(Machine(device="auto", threads=os.cpu_count() or 1, save_every=60))
        explainer = open_explainer(folder, model, Path(latents or data / "latents" / folder.name), device)
        with suppress(BadInput):  # which an SAE that reads vectors raises
            explainer.read("a")  # opens the tokenizer, so that the first request need not wait seconds for it
        return explainer

    # Only the model's thread calls torch: a second thread would bring a second team of workers, and slow both down.
    explainer = gate.model.submit(opened).result()
    names = frozenset(filter(None, (name.strip().lower() for name in os.environ.get("STRATA_HOSTS", "").split(","))))
    hosts = names if names or is_loopback(host) else None
    app = make_app(explainer, token, Path(pages) if pages else data.parent / "reports" / "latents", gate, hosts)

    from uvicorn import Server

    with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has shut down
        Server(config(app, host, int(port))).run()


if __name__ == "__main__":
    run(main)
