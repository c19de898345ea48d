"""Names that people give to latents: the file, what wins, and what is carried over to another SAE."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from planted import DEAD, SILENT_ID, explained, planted
from test_latent_pages import NOTHING, Parsed

from apps.dashboard.artifacts import Project
from apps.label.label import carry, label
from apps.show.card import card
from src import relabel
from stages.report.latents import site
from stages.report.layer import read_layer
from strata.interpretation import labels
from strata.interpretation.labels import changed, open_named, parsed
from strata.interpretation.read import open_latents
from strata.run.door import BadInput
from strata.run.files import read_json, write_json
from strata.sae import disk
from strata.sae.sae import SAE

ROOT = Path(__file__).resolve().parents[1]
FILE = Path("labels.yaml")
OURS, OTHERS, EMPTY = "9/00000000000000aa", "9/00000000000000bb", "3/00000000000000aa"
BY_HAND = f"""# mine
{OURS}:
    # of time
    3: months   # not days
    1: "a: b"

{OTHERS}:
  3: other
{EMPTY}:
"""


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_line_is_changed_and_the_rest_stays():
    assert parsed(BY_HAND, FILE) == {OURS: {3: "months", 1: "a: b"}, OTHERS: {3: "other"}, EMPTY: {}}

    renamed = changed(BY_HAND, FILE, OURS, {3: 'months "of" the year'})
    assert renamed == BY_HAND.replace("3: months   # not days", '3: "months \\"of\\" the year"')
    added = changed(BY_HAND, FILE, OURS, {12: "years"})
    assert added == BY_HAND.replace('    1: "a: b"\n', '    1: "a: b"\n    12: "years"\n')
    taken = changed(BY_HAND, FILE, OURS, {1: None})
    assert taken == BY_HAND.replace('    1: "a: b"\n', "")
    assert changed(BY_HAND, FILE, OURS, {8: None, 3: "months"}) == BY_HAND, "nothing is to change"
    several = changed(BY_HAND, FILE, OURS, {1: None, 3: "years", 4: "days"})
    assert several == BY_HAND.replace("3: months   # not days", '3: "years"').replace('1: "a: b"', '4: "days"')

    new = changed(BY_HAND, FILE, "3/00000000000000cc", {0: "été"})
    assert new == BY_HAND + '3/00000000000000cc:\n  0: "été"\n'
    assert changed(BY_HAND, FILE, EMPTY, {7: "x"}) == BY_HAND + '  7: "x"\n'
    assert changed("# nothing yet\n", FILE, OURS, {7: "x"}) == f'# nothing yet\n{OURS}:\n  7: "x"\n'
    assert changed("", FILE, OURS, {7: "x"}) == f'{OURS}:\n  7: "x"\n'
    assert changed(f"{OURS}:\n  7: x", FILE, OURS, {8: "y"}) == f'{OURS}:\n  7: x\n  8: "y"\n', "no line end"
    assert parsed(changed(f"{OURS}:\n  7: x\n", FILE, OURS, {7: None}), FILE) == {OURS: {}}


def test_line_ends_of_windows_stay():
    text = BY_HAND.replace("\n", "\r\n")
    assert changed(text, FILE, OURS, {12: "years"}) == changed(BY_HAND, FILE, OURS, {12: "years"}).replace("\n", "\r\n")


@pytest.mark.parametrize(
    "name", ["👩\u200d🔬 science", "می\u200cخواهم", "東京\u3000大阪", "a\u00a0b", "#1", "yes", "1984", "- a: 'b' \\"]
)
def test_any_name_of_one_line_comes_back(name: str):
    assert parsed(changed(BY_HAND, FILE, OURS, {5: name}), FILE)[OURS][5] == name


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "---\n# nothing\n...\n"])
def test_a_file_without_names_is_empty(text: str):
    assert parsed(text, FILE) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "must be a mapping"),
        (f"{OURS}: months\n", "labels.yaml, line 1: below 9/00000000000000aa stand its latents and their names"),
        (f"{OURS}:\n  3: [a]\n", "labels.yaml, line 2: the name of latent 3 is no text; put it in quotes"),
        (f"{OURS}:\n  3: 1984\n", "line 2: the name of latent 3 is no text; put it in quotes"),
        (f"{OURS}:\n  3: yes\n", "line 2: the name of latent 3 is no text; put it in quotes"),
        (f"{OURS}:\n  3: a: b\n", "is not valid YAML: .*; put names in quotes"),
        (f"{OURS}:\n  three: a\n", "line 2: 'three' is no number of a latent"),
        (f"{OURS}:\n  042: a\n", "042 would be read as 34; write 34, or put it in quotes"),
        (f"{OURS}:\n  1:30: a\n", "1:30 would be read as 90"),
        (f"{OURS}:\n  -1: a\n", "line 2: '-1' is no number of a latent"),
        (f"{OURS}:\n  3: {'a' * 81}\n", "line 2: the name of latent 3 must have 1 to 80 characters"),
        (f'{OURS}:\n  3: "a\\nb"\n', "has a line end or a character that cannot be shown"),
        (f'{OURS}:\n  3: "a\\u202eb"\n', "has a line end or a character that cannot be shown"),
        (f'{OURS}:\n  3: " "\n', "must have 1 to 80 characters"),
        ("9/00000000000000AA:\n  3: a\n", "line 1: '9/00000000000000AA' is no SAE"),
        ("09/00000000000000aa:\n  3: a\n", "is no SAE; one is written like 9/3f2a9c0d1e4b5a67"),
        ("layer 9:\n  3: a\n", "line 1: 'layer 9' is no SAE"),
    ],
)
def test_what_is_no_name_is_refused(text: str, message: str):
    with pytest.raises(BadInput, match=message):
        parsed(text, FILE)


def test_a_file_that_is_none_is_a_sentence(tmp_path: Path):
    (tmp_path / "latin.yaml").write_bytes(f"{OURS}:\n  3: été\n".encode("latin-1"))
    with pytest.raises(BadInput, match=r"latin\.yaml is not UTF-8"):
        labels.read(tmp_path / "latin.yaml")
    with pytest.raises(BadInput, match="cannot be read"):
        labels.read(tmp_path)
    assert labels.read(tmp_path / "nowhere.yaml") == {}
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbf" + BY_HAND.encode())
    assert labels.read(tmp_path / "marked.yaml")[OTHERS] == {3: "other"}


def test_what_a_person_wrote_otherwise_is_not_touched():
    flow = f"{OURS}: {{3: months, 4: days}}\n"
    assert parsed(flow, FILE) == {OURS: {3: "months", 4: "days"}}
    with pytest.raises(BadInput, match="are not written one a line; change them there"):
        changed(flow, FILE, OURS, {3: "years"})


# --- what people see --------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`data/latents/9/`, of the SAE OURS, with `data/explained/9/`."""
    folder = planted(tmp_path / "data/latents/9", 9)
    meta = read_json(folder / "meta.json")
    write_json(folder / "meta.json", {**meta, "sae": OURS.partition("/")[2]})
    explained(tmp_path / "data/explained/9", folder)
    return tmp_path / "data"


def test_a_name_of_a_person_wins_everywhere(data: Path, monkeypatch: pytest.MonkeyPatch):
    folder, path = data / "latents/9", data.parent / "labels.yaml"
    before = open_named(folder)
    label(folder, 0, "<b>mine</b>", path)
    label(folder, SILENT_ID, "silence", path)
    known = open_named(folder)
    assert known.names() == {**before.names(), 0: "<b>mine</b>", SILENT_ID: "silence"}
    assert known.rows("statistics", 0)[0]["named_by"] == "person"
    assert known.rows("statistics", 1) == before.rows("statistics", 1)
    assert open_latents(folder).names_by_people == {}, "stages do not read them"
    monkeypatch.chdir(data)
    assert open_named(Path("latents/9")).names() == open_named(Path("../data/latents/9")).names() == known.names()

    made = dict(site([read_layer(known, 1)], NOTHING))
    page = Parsed(made["9/0.html"])
    assert "<b>mine</b>" in page.text and "named by a person" in page.text
    assert "silence" in Parsed(made[f"9/{SILENT_ID}.html"]).text, "whoever has such a name has a page"
    names = json.loads(Parsed(made["9/index.html"]).scripts[0])["text"]
    assert names[0] == "<b>mine</b>" and names[SILENT_ID] == "silence" and names[DEAD] == ""
    assert "<b>mine</b> (named by a person)" in card(known, 0, 100, False)
    assert "named by a person" not in card(known, 1, 100, False)

    label(folder, 0, "", path)
    assert open_named(folder).names() == {**before.names(), SILENT_ID: "silence"}


def test_the_dashboard_reads_names_again_and_computes_nothing_anew(data: Path):
    project = Project(data, data.parent / "reports")
    files, names = project.stamp(), project.named()
    label(data / "latents/9", 0, "mine", data.parent / "labels.yaml")
    assert project.stamp() == files and project.named() != names


def test_names_never_stand_at_another_sae(data: Path, capsys: pytest.CaptureFixture[str]):
    folder, path = data / "latents/9", data.parent / "labels.yaml"
    path.write_text(f"{OTHERS}:\n  0: theirs\n{EMPTY}:\n  1: of another layer\n")
    assert open_named(folder).names_by_people == {}
    said = capsys.readouterr().err
    assert f"another SAE, {OTHERS}; `python -m src.relabel 9 FOLDER`" in said
    assert open_named(folder).names_by_people == {} and capsys.readouterr().err == "", "it is said once"
    label(folder, 1, "ours", path)
    assert open_named(folder).names_by_people == {1: "ours"}

    path.write_text(f"{OURS}:\n  5000: far\n")
    with pytest.raises(BadInput, match="9/00000000000000aa has no latent 5000"):
        open_named(folder)


def test_what_cannot_be_named_is_refused(data: Path):
    folder, path = data / "latents/9", data.parent / "labels.yaml"
    for latent, name, message in (
        (5000, "x", "layer 9 has no latent 5000"),
        (DEAD, "x", f"latent {DEAD} of layer 9 is dead"),
        (1, "a\nb", "the name has a line end"),
        (1, "a" * 81, "the name must have 1 to 80 characters"),
    ):
        with pytest.raises(BadInput, match=message):
            label(folder, latent, name, path)
    write_json(folder / "meta.json", {"skipped": True})
    with pytest.raises(BadInput, match="interpret was skipped"):
        label(folder, 1, "x", path)
    assert not path.exists()


def test_the_command_takes_any_name(data: Path):
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        started = [sys.executable, "-m", "src.label", *words]
        env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(data)}
        return subprocess.run(started, cwd=data.parent, env=env, capture_output=True, text=True, check=False)

    for words in (("9", "0", "-ing words"), ("9", "1", "x"), ("9", "1", "")):
        assert command(*words).returncode == 0
    assert labels.read(data.parent / "labels.yaml") == {OURS: {0: "-ing words"}}
    few = command("9", "0")
    assert few.returncode == 2 and "2 words where three are wanted" in few.stderr


# --- another training -------------------------------------------------------------------------------------------------


def sae(decoder: torch.Tensor) -> SAE:
    latents, width = decoder.shape
    return SAE(decoder.clone(), torch.zeros(latents), decoder, torch.zeros(width), k=2)


def test_a_layer_may_be_written_with_a_zero_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    decoder = torch.eye(4)
    for folder in ("old", "data/sae/9"):
        disk.save(tmp_path / folder, sae(decoder), {})
    FILE.write_text(f"{labels.key(9, disk.decoder_hash(sae(decoder)))}:\n  3: months\n")
    relabel.main("09", "old")
    assert capsys.readouterr().out.startswith("3 'months': its partner 3 (cosine 1.00) is 'months'")


def test_names_are_carried_over_to_latents_that_are_alike(tmp_path: Path):
    random = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(20, 64, generator=random), dim=1)
    order = torch.randperm(20, generator=random)
    disk.save(tmp_path / "old", sae(decoder), {})
    disk.save(tmp_path / "same", sae(decoder[order] + 0.02 * torch.randn(20, 64, generator=random)), {})
    disk.save(tmp_path / "other", sae(torch.randn(20, 64, generator=random)), {})

    path, old = tmp_path / "labels.yaml", labels.key(9, disk.decoder_hash(sae(decoder)))
    text = f"# kept\n{old}:\n" + "".join(f"  {latent}: name {latent}\n" for latent in range(20))
    path.write_text(text)
    results = carry(9, tmp_path / "old", tmp_path / "same", path)
    new = labels.key(9, disk.decoder_hash(disk.load(tmp_path / "same")[0]))
    expected = {int(place): f"name {int(latent)}" for place, latent in enumerate(order)}
    assert labels.read(path) == {old: {n: f"name {n}" for n in range(20)}, new: expected}, "all survive a permutation"
    assert path.read_text().startswith(text) and all(one.cosine > 0.9 and one.own is None for one in results)

    again = carry(9, tmp_path / "old", tmp_path / "same", path)
    assert all(one.own == one.name for one in again) and labels.read(path)[new] == expected

    before = path.read_text()
    assert {one.partner for one in carry(9, tmp_path / "old", tmp_path / "other", path)} == {None}
    assert path.read_text() == before
    with pytest.raises(BadInput, match="has no names of"):
        carry(9, tmp_path / "other", tmp_path / "same", path)
    path.write_text(f"{old}:\n  20: far\n")
    with pytest.raises(BadInput, match="has no latent 20: it has 0 to 19"):
        carry(9, tmp_path / "old", tmp_path / "same", path)
    shutil.rmtree(tmp_path / "other")
    disk.save(tmp_path / "other", sae(torch.randn(20, 8, generator=random)), {})
    with pytest.raises(BadInput, match=r"is of width 64, and .* of 8"):
        carry(9, tmp_path / "old", tmp_path / "other", path)
