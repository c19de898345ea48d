"""Convert SAEs from and to other tools' formats: `python -m src.convert SOURCE TARGET [FORM] [ENDING]`."""

from pathlib import Path
from tempfile import TemporaryDirectory

from apps.convert import card
from strata.formats import hub
from strata.formats.read import read
from strata.formats.say import line
from strata.formats.write import check_format, check_new, write
from strata.run.door import run
from strata.run.files import read_json, write_text
from strata.sae import disk


def main(source: str, target: str, form: str = "strata", ending: str = "") -> None:
    """SOURCE: an SAE of SAELens, sparsify, dictionary_learning, Gemma Scope, Spindle, Integral Superposition, Growth
    Signals, GhostTrack or Strata: a folder, a file, or hub:OWNER/REPO/FOLDER@REVISION. TARGET: a new folder, or
    hub:OWNER/REPO/FOLDER, new too, to publish it: a new repository is public. FORM: strata (the default), saelens,
    sparsify, dictionary_learning or npz. ENDING: what a decoder of Growth Signals ends in: identity, tanh, sigmoid.

    Example: python -m src.convert data/sae/9 exported/9 saelens
    """
    # Refuse a wrong format, or a target that exists, before anything is read.
    published = hub.place(target) if target.startswith(hub.PREFIX) else None
    check_format(form)
    if published:
        hub.check_new(published)
    else:
        check_new(Path(target))

    if source.startswith(hub.PREFIX):
        imported = hub.bring(hub.place(source), ending or None)
    else:
        imported = read(Path(source), ending or None)
    report = card.beside(Path(source))
    text = card.card(imported, form, read_json(report) if report else None, published)

    with TemporaryDirectory() as temporary:
        folder = Path(temporary) if published else Path(target)
        write(folder, imported, form)
        write_text(folder / "README.md", text)
        address = hub.give(folder, published) if published else target

    pinned = f", sha256 {disk.fingerprint(Path(target))}" if form in ("strata", "saelens") and not published else ""
    print(f"read {line(imported)}; wrote {form} to {address}{pinned}")


if __name__ == "__main__":
    run(main)
