"""Names that people give to latents: the file, what wins, and what is carried over to another SAE."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from planted import DEAD, SILENT_ID, explained, planted
from test_latent_pages import NOTHING, Parsed

from apps.dashboard.artifacts import Project
from apps.label.label import carry, label
from apps.show.card import card
from stages.report.latents import read_layer, site
from strata.interpretation import given
from strata.interpretation.read import open_explained, open_latents
from strata.run.door import BadInput
from strata.run.files import read_json, write_json
from strata.sae import disk
from strata.sae.sae import SAE

OURS, OTHERS = "9/00000000000000aa", "9/00000000000000bb"
BY_HAND = f"""# mine
{OURS}:
    # of time
    3: months   # not days
    1: "a: b"

{OTHERS}:
  3: other
3/00000000000000aa:
"""


def test_a_line_is_changed_and_the_rest_stays():
    path = Path("labels.yaml")
    expected = {OURS: {3: "months", 1: "a: b"}, OTHERS: {3: "other"}, "3/00000000000000aa": {}}
    assert given.parsed(BY_HAND, path) == expected

    changed = given.written(BY_HAND, path, OURS, 3, 'months "of" the year')
    assert changed == BY_HAND.replace("3: months   # not days", '3: "months \\"of\\" the year"')
    added = given.written(BY_HAND, path, OURS, 12, "years")
    assert added == BY_HAND.replace('    1: "a: b"\n', '    1: "a: b"\n    12: "years"\n')
    taken = given.written(BY_HAND, path, OURS, 1, None)
    assert taken == BY_HAND.replace('    1: "a: b"\n', "") and given.written(BY_HAND, path, OURS, 8, None) == BY_HAND

    new = given.written(BY_HAND, path, "3/00000000000000cc", 0, "été")
    assert new == BY_HAND + '3/00000000000000cc:\n  0: "été"\n'
    filled = given.written(BY_HAND, path, "3/00000000000000aa", 7, "x")
    assert filled == BY_HAND + '  7: "x"\n'
    assert given.written("# nothing yet\n", path, OURS, 7, "x") == f'# nothing yet\n{OURS}:\n  7: "x"\n'
    emptied = given.written(f"{OURS}:\n  7: x\n", path, OURS, 7, None)
    assert given.parsed(emptied, path) == {OURS: {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "must be a mapping"),
        (f"{OURS}:\n  3: [a]\n", "labels.yaml"),
        (f"{OURS}:\n  three: a\n", "labels.yaml"),
        (f"{OURS}:\n  3: {'a' * 81}\n", "the name of latent 3 of 9/00000000000000aa must be one line of 1 to 80"),
        (f'{OURS}:\n  3: "a\\nb"\n', "must be one line"),
        (f'{OURS}:\n  3: " "\n', "must be one line"),
    ],
)
def test_a_name_that_is_none_is_refused(text: str, message: str):
    with pytest.raises(BadInput, match=message):
        given.parsed(text, Path("labels.yaml"))


def test_what_a_person_wrote_otherwise_is_not_touched():
    flow = f"{OURS}: {{3: months, 4: days}}\n"
    with pytest.raises(BadInput, match="not written one a line; change that of latent 3 there"):
        given.written(flow, Path("labels.yaml"), OURS, 3, "years")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`data/latents/9/`, of the SAE OURS, with `data/explained/9/`."""
    folder = planted(tmp_path / "data/latents/9", 9)
    meta = read_json(folder / "meta.json")
    write_json(folder / "meta.json", {**meta, "sae": OURS.partition("/")[2]})
    explained(tmp_path / "data/explained/9", folder)
    return tmp_path / "data"


def test_a_name_of_a_person_wins_everywhere(data: Path):
    folder, labels = data / "latents/9", data.parent / "labels.yaml"
    before = open_explained(folder)
    label(folder, 0, "<b>mine</b>", labels)
    label(folder, SILENT_ID, "silence", labels)
    known = open_explained(folder)
    assert known.names() == {**before.names(), 0: "<b>mine</b>", SILENT_ID: "silence"}
    assert known.rows("statistics", 0)[0]["named_by"] == "person"
    assert known.rows("statistics", 1) == before.rows("statistics", 1)
    assert open_latents(folder).given == {}, "stages do not read them"

    made = dict(site([read_layer(known, 1)], NOTHING))
    page = Parsed(made["9/0.html"])
    assert "<b>mine</b>" in page.text and "named by a person" in page.text
    assert "silence" in Parsed(made[f"9/{SILENT_ID}.html"]).text, "whoever has such a name has a page"
    names = json.loads(Parsed(made["9/index.html"]).scripts[0])["text"]
    assert names[0] == "<b>mine</b>" and names[SILENT_ID] == "silence" and names[DEAD] == ""
    assert "<b>mine</b> (named by a person)" in card(known, 0, 100, False)
    assert "named by a person" not in card(known, 1, 100, False)

    label(folder, 0, "", labels)
    assert open_explained(folder).names() == {**before.names(), SILENT_ID: "silence"}


def test_the_dashboard_looks_again_after_a_new_name(data: Path):
    project = Project(data, data.parent / "reports")
    before = project.stamp()
    label(data / "latents/9", 0, "mine", data.parent / "labels.yaml")
    assert project.stamp() != before


def test_names_never_stand_at_another_sae(data: Path, capsys: pytest.CaptureFixture[str]):
    folder, labels = data / "latents/9", data.parent / "labels.yaml"
    labels.write_text(f"{OTHERS}:\n  0: theirs\n3/00000000000000aa:\n  1: of another layer\n")
    assert open_explained(folder).given == {}
    assert "1 names of layer 9 are of other SAEs; `python -m src.relabel 9 FOLDER`" in capsys.readouterr().err
    label(folder, 1, "ours", labels)
    assert open_explained(folder).given == {1: "ours"} and capsys.readouterr().err == ""

    with pytest.raises(BadInput, match="layer 9 has no latent 5000"):
        label(folder, 5000, "x", labels)
    with pytest.raises(BadInput, match="must be one line of 1 to 80 characters"):
        label(folder, 1, "a\nb", labels)
    labels.write_text(f"{OURS}:\n  5000: far\n")
    with pytest.raises(BadInput, match="9/00000000000000aa names latent 5000, but the SAE has"):
        open_explained(folder)


def sae(decoder: torch.Tensor) -> SAE:
    latents, width = decoder.shape
    return SAE(decoder.clone(), torch.zeros(latents), decoder, torch.zeros(width), k=2)


def test_names_are_carried_over_to_latents_that_are_alike(tmp_path: Path):
    random = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(20, 64, generator=random), dim=1)
    order = torch.randperm(20, generator=random)
    disk.save(tmp_path / "old", sae(decoder), {})
    disk.save(tmp_path / "same", sae(decoder[order] + 0.02 * torch.randn(20, 64, generator=random)), {})
    disk.save(tmp_path / "other", sae(torch.randn(20, 64, generator=random)), {})

    labels, old = tmp_path / "labels.yaml", given.key(9, given.hash_of(decoder))
    text = f"# kept\n{old}:\n" + "".join(f"  {latent}: name {latent}\n" for latent in range(20))
    labels.write_text(text)
    found = carry(9, tmp_path / "old", tmp_path / "same", labels)
    new = given.key(9, given.hash_of(disk.load(tmp_path / "same")[0].decoder))
    expected = {int(place): f"name {int(latent)}" for place, latent in enumerate(order)}
    assert given.read(labels) == {old: {n: f"name {n}" for n in range(20)}, new: expected}, "all survive a permutation"
    assert labels.read_text().startswith(text) and all(one.cosine > 0.9 and not one.known for one in found)

    again = carry(9, tmp_path / "old", tmp_path / "same", labels)
    assert all(one.known for one in again) and given.read(labels)[new] == expected

    before = labels.read_text()
    assert {one.here for one in carry(9, tmp_path / "old", tmp_path / "other", labels)} == {None}
    assert labels.read_text() == before
    with pytest.raises(BadInput, match="has no names of"):
        carry(9, tmp_path / "other", tmp_path / "same", labels)
    shutil.rmtree(tmp_path / "other")
    disk.save(tmp_path / "other", sae(torch.randn(20, 8, generator=random)), {})
    with pytest.raises(BadInput, match=r"is of width 64, and .* of 8"):
        carry(9, tmp_path / "old", tmp_path / "other", labels)
