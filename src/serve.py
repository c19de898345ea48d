"""Serve an SAE over HTTP: `python -m src.serve data/sae/9`, then http://127.0.0.1:8000."""

import os
from pathlib import Path

from stages.door import BadInput, run
from stages.machine import Machine, start
from stages.serve.app import make_app
from stages.serve.explainer import open_explainer


def main(
    sae: str, lm: str = "", latents: str = "", pages: str = "", port: str = "8000", host: str = "127.0.0.1"
) -> None:
    """SAE: its folder. LM, LATENTS, PAGES: folders that fetch, interpret and report wrote; by default those beside it
    in the project. With STRATA_TOKEN set, requests must carry it."""
    folder = Path(sae).resolve()
    data = folder.parents[1]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise BadInput(f"the port is {port!r}, not a number from 1 to 65535")
    token = os.environ.get("STRATA_TOKEN") or None
    if host not in ("127.0.0.1", "localhost", "::1") and token is None:
        raise BadInput(f"to listen on {host}, where others can reach it, set STRATA_TOKEN")
    device = start(Machine(device="auto", threads=os.cpu_count() or 1, save_every=60))
    explainer = open_explainer(folder, Path(lm or data / "lm"), Path(latents or data / "latents" / folder.name), device)
    app = make_app(explainer, token, Path(pages) if pages else data.parent / "reports" / "latents")
    import uvicorn

    uvicorn.run(
        app, host=host, port=int(port), log_level="warning", timeout_keep_alive=5, h11_max_incomplete_event_size=2**16
    )


if __name__ == "__main__":
    run(main)
